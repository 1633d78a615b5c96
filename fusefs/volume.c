/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File systems inside of images. Each is read by a process of its own (fsreader/), which is started when somebody looks
 * at it and stopped when nobody has for a while, or when there are too many: those that wait for the next look are few,
 * for a user-mode Linux takes 60 MiB. As long as one runs its image is open, and can't be deleted.
 *
 *     STOPPED ──► STARTING ──► RUNNING ──► STOPPING ──► STOPPED       STARTING ──► STOPPED, when it can't be started
 *
 * Starting may replay a journal, so no lock is held meanwhile; who comes along waits for the next state. A volume that
 * can't be started is asked again after some seconds only: it is refused for the same reason most likely.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "fusefs/tree_internal.h"
#include "syncer/source_type.h"

enum { IDLE_SECONDS = 30, IDLE_MOST = 8, REFUSED_SECONDS = 5 };

/* ---- starting and stopping; no lock is held ---- */

struct place {
	struct fsreader_source source;
	char type[32];
};

static int find_partition(struct tree *tree, struct volume *volume, struct place *ret_place, struct failure *failure)
{
	uint32_t number =
		strcmp(volume->name, WHOLE_DISK_NAME) == 0 ? WHOLE_DISK : (uint32_t)strtoul(volume->name, NULL, 10);
	struct disk_partition partition;
	int error = origin_find_partition(tree, volume->origin, number, &partition, failure);

	if (error < 0)
		return error;
	volume->place = (struct image_source){
		.tree = tree, .origin = volume->origin, .off_bytes = partition.off_bytes, .pooled = volume->pooled};
	ret_place->source = (struct fsreader_source){.read = image_source_read,
						     .opaque = &volume->place,
						     .size_bytes = partition.len_bytes,
						     .sector_bytes = disk_sector_bytes(volume->pooled->disk)};
	memcpy(ret_place->type, partition.type, sizeof(partition.type));
	return 0;
}

static int find_logical(struct tree *tree, struct volume *volume, struct place *ret_place, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	const struct lvm_volume *logical;
	struct fsreader_source *source = &ret_place->source;
	int error = origin_scan(tree, volume->origin, &scan, failure);

	if (error < 0)
		return error;
	logical = origin_find_volume(scan, volume->name);
	if (logical == NULL)
		return fail(failure, -ENOENT, "there is no such volume");
	if (logical->problem != NULL)
		return fail(failure, -ENOTSUP, "%s", logical->problem);
	origin_lend(volume->origin, volume->pooled);
	*source = lvm_source(logical);
	return source_type_of(source->read, source->opaque, source->size_bytes, source->sector_bytes, ret_place->type,
			      failure);
}

/* Why there are no files, where that can be said without trying. */
static int check_type(const char *type, struct failure *failure)
{
	static const struct {
		const char *type, *why;
	} others[] = {{"", "there is no file system here that is known"},
		      {"swap", "swap space, which holds no files"},
		      {"LVM2_member", "a physical volume of LVM; the files of its logical volumes are in files/VG/LV"},
		      {"crypto_LUKS", "encrypted (LUKS), and nobody has the key here"},
		      {"linux_raid_member", "a member of a RAID array of Linux, which can't be read alone"}};

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (strcmp(type, others[i].type) == 0)
			return fail(failure, -ENOTSUP, "%s", others[i].why);
	return fsreader_check_type(type, failure);
}

static int start_reader(struct tree *tree, struct volume *volume, struct failure *failure)
{
	char what[POOL_KEY_BYTES + sizeof(volume->name)];
	const struct fsreader_options options = {.what = what, .notices = tree->options.notices};
	char name[POOL_KEY_BYTES];
	struct place place = {.type = ""};
	int error;

	origin_name(volume->origin, name);
	(void)snprintf(what, sizeof(what), "%s/%s", name, volume->name);
	error = strchr(volume->name, '/') == NULL ? find_partition(tree, volume, &place, failure)
						  : find_logical(tree, volume, &place, failure);
	if (error == 0)
		error = check_type(place.type, failure);
	if (error < 0)
		return error;
	volume->source = place.source;
	return fsreader_start(&volume->source, place.type, &options, &volume->reader, failure);
}

static int start(struct tree *tree, struct volume *volume, struct failure *failure)
{
	int error = origin_open(tree, volume->origin, &volume->pooled, failure);

	if (error < 0)
		return error;
	error = start_reader(tree, volume, failure);
	if (error < 0)
		(void)origin_close(tree, volume->origin, volume->pooled, NULL); /* an image */
	return error;
}

static void stop(struct tree *tree, struct volume *volume)
{
	fsreader_stop(take_ptr(volume->reader));
	(void)origin_close(tree, volume->origin, volume->pooled, NULL); /* an image */
}

/* ---- states ---- */

static void add_running_locked(struct tree *tree, struct volume *volume)
{
	tree->volumes.running[tree->volumes.running_count++] = volume;
	WITH_LOCK(&tree->lock);
	volume->known++;
}

static void drop_running_locked(struct tree *tree, struct volume *volume)
{
	struct volumes *volumes = &tree->volumes;

	unsigned i = 0;

	while (volumes->running[i] != volume)
		i++;
	volumes->running[i] = volumes->running[--volumes->running_count];
	volume->state = VOLUME_STOPPED;
	(void)pthread_cond_broadcast(&volumes->changed);
}

/* Gives the lock up while it works. Afterwards the volume may be gone, unless somebody else knows it. */
static void stop_locked(struct tree *tree, struct volume *volume)
{
	assert(volume->users == 0 && volume->state == VOLUME_RUNNING);
	volume->state = VOLUME_STOPPING;
	tree->volumes.idle_count--;
	(void)pthread_mutex_unlock(&tree->volumes.lock);
	stop(tree, volume);
	(void)pthread_mutex_lock(&tree->volumes.lock);
	drop_running_locked(tree, volume);
	(void)pthread_mutex_unlock(&tree->volumes.lock);
	volume_put(tree, volume);
	(void)pthread_mutex_lock(&tree->volumes.lock);
}

/* The one that nobody has used for longest, or NULL if all are in use. */
static struct volume *find_idle_locked(const struct volumes *volumes)
{
	struct volume *found = NULL;

	for (unsigned i = 0; i < volumes->running_count; i++) {
		struct volume *volume = volumes->running[i];

		if (volume->state == VOLUME_RUNNING && volume->users == 0 &&
		    (found == NULL || volume->idle_since < found->idle_since))
			found = volume;
	}
	return found;
}

static int make_room_locked(struct tree *tree, struct failure *failure)
{
	struct volume *idle = find_idle_locked(&tree->volumes);

	if (idle == NULL)
		return fail(failure, -EMFILE,
			    "%d file systems in images are in use already, and no more can be at once", READERS_MOST);
	stop_locked(tree, idle);
	return 0;
}

static int start_locked(struct tree *tree, struct volume *volume, struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error;

	add_running_locked(tree, volume);
	volume->state = VOLUME_STARTING;
	(void)pthread_mutex_unlock(&tree->volumes.lock);
	error = start(tree, volume, &cause);
	(void)pthread_mutex_lock(&tree->volumes.lock);
	if (error == 0) {
		volume->state = VOLUME_RUNNING;
		tree->volumes.idle_count++;
		(void)pthread_cond_broadcast(&tree->volumes.changed);
		return 0;
	}
	drop_running_locked(tree, volume);
	volume->is_refused = true;
	volume->refused_at = units_monotonic_seconds();
	volume->refusal = cause;
	(void)pthread_mutex_unlock(&tree->volumes.lock);
	volume_put(tree, volume); /* who asks knows it as well */
	(void)pthread_mutex_lock(&tree->volumes.lock);
	return fail_from(failure, &cause);
}

int volume_use(struct tree *tree, struct volume *volume, struct fsreader **ret_reader, struct failure *failure)
{
	struct volumes *volumes = &tree->volumes;
	WITH_LOCK(&volumes->lock);

	while (volume->state != VOLUME_RUNNING) {
		int error = 0;

		if (volume->state != VOLUME_STOPPED)
			(void)pthread_cond_wait(&volumes->changed, &volumes->lock);
		else if (volume->is_refused && units_monotonic_seconds() - volume->refused_at < REFUSED_SECONDS)
			error = fail_from(failure, &volume->refusal);
		else if (volumes->running_count == READERS_MOST)
			error = make_room_locked(tree, failure); /* somebody else may be quicker meanwhile */
		else
			error = start_locked(tree, volume, failure);
		if (error < 0)
			return error;
	}
	if (volume->users++ == 0)
		volumes->idle_count--;
	*ret_reader = volume->reader;
	return 0;
}

/* The keeper is woken when it must be only: this is done after each question. */
void volume_done(struct tree *tree, struct volume *volume)
{
	struct volumes *volumes = &tree->volumes;
	WITH_LOCK(&volumes->lock);

	assert(volume->users > 0);
	if (--volume->users > 0)
		return;
	volume->idle_since = units_monotonic_seconds();
	volumes->idle_count++;
	if (!volumes->keeper_has_a_time || volumes->idle_count > IDLE_MOST)
		(void)pthread_cond_signal(&volumes->wake_keeper);
}

/* ---- the keeper: stops what is idle ---- */

/* How long this one may go on waiting for the next look. */
static double seconds_left(const struct volumes *volumes, const struct volume *idle)
{
	return volumes->idle_count > IDLE_MOST ? 0 : idle->idle_since + IDLE_SECONDS - units_monotonic_seconds();
}

static void wait_for_time_locked(struct volumes *volumes, double seconds)
{
	struct timespec until;

	(void)clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)seconds + 1;
	volumes->keeper_has_a_time = true;
	(void)pthread_cond_timedwait(&volumes->wake_keeper, &volumes->lock, &until);
	volumes->keeper_has_a_time = false;
}

static void *keep(void *opaque)
{
	struct tree *tree = opaque;
	struct volumes *volumes = &tree->volumes;
	WITH_LOCK(&volumes->lock);

	while (!volumes->is_ending) {
		struct volume *idle = find_idle_locked(volumes);

		if (idle == NULL)
			(void)pthread_cond_wait(&volumes->wake_keeper, &volumes->lock);
		else if (seconds_left(volumes, idle) > 0)
			wait_for_time_locked(volumes, seconds_left(volumes, idle));
		else
			stop_locked(tree, idle);
	}
	return NULL;
}

int volumes_start(struct tree *tree, struct failure *failure)
{
	int error = -pthread_create(&tree->volumes.keeper, NULL, keep, tree);

	if (error < 0)
		return fail_errno(failure, error, "tree: a thread");
	tree->volumes.has_keeper = true;
	return 0;
}

void volumes_stop(struct tree *tree)
{
	struct volumes *volumes = &tree->volumes;

	if (volumes->has_keeper) {
		{
			WITH_LOCK(&volumes->lock);
			volumes->is_ending = true;
			(void)pthread_cond_signal(&volumes->wake_keeper);
		}
		(void)pthread_join(volumes->keeper, NULL);
		volumes->has_keeper = false;
	}
	WITH_LOCK(&volumes->lock);
	while (volumes->running_count > 0)
		stop_locked(tree, volumes->running[0]);
}
