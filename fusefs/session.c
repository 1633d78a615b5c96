/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ends in one of two ways.
 *
 *     unmounted     by umount or fusermount3: the kernel has written back what it had, and says goodbye; the loop ends
 * by itself told to end   a thread takes the signal and unmounts, with the same result. Where that can't be, because
 * somebody has something open, it has the kernel write back what it has, takes the mount out of sight, and ends the
 * loop. Who has something open gets errors from then on.
 *
 * What is unmounted is what we have mounted, and nothing else: others may have taken it out of sight before, and mounted
 * something of theirs there, or over it, or it lay on a mount of theirs all the time.
 *
 * Then the tree is closed, which folds journals; `umount` doesn't wait for that, but who starts us in the foreground
 * sees when we have ended.
 *
 * All signals are for that thread: they are blocked in all others, which inherit it, so that no work is disturbed by
 * one. To get libfuse's loop out of its waiting it takes a signal to just the thread that waits, sent until it has
 * left, for one that comes before it waits is lost.
 */
#include "fusefs/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fusefs/fuse_ops.h"
#include "fusefs/fuse_wire.h"
#include "fusefs/log.h"
#include "fusefs/mount_point.h"

enum {
	THREADS_A_CORE = 4,
	THREADS_LEAST = 8,
	THREADS_MOST = 16,
	READ_AHEAD_KIB = 1024, /* as much as a request may have */
	WAKE_STEP_MS = 50,
	GOODBYE_MS = 2000, /* for the loop to end by itself */
};
#define SIGNAL_WAKE SIGUSR2

struct session {
	const struct fs_options *options;
	const char *mount_point;
	struct fuse_mount mount;
	struct fuse_session *fuse;
	dev_t device; /* of the mount; 0: could not be told */
	void (*ready)(void *opaque);
	void *opaque;
	pthread_t loop_thread, signal_thread;
	atomic_bool is_over; /* the loop has ended */
};

/* ---- signals ---- */

static void wake(int number)
{
	(void)number; /* that it interrupts is what it is for */
}

static sigset_t ending_signals(void)
{
	sigset_t signals;

	(void)sigemptyset(&signals); /* these can't fail */
	(void)sigaddset(&signals, SIGINT);
	(void)sigaddset(&signals, SIGTERM);
	(void)sigaddset(&signals, SIGHUP);
	return signals;
}

static void set_up_signals(void)
{
	const struct sigaction wakes = {.sa_handler = wake}, ignored = {.sa_handler = SIG_IGN},
			       normal = {.sa_handler = SIG_DFL};
	sigset_t signals = ending_signals();

	(void)sigaction(SIGNAL_WAKE, &wakes, NULL); /* nor can these */
	(void)sigaction(SIGPIPE, &ignored, NULL);
	(void)sigaction(SIGCHLD, &normal, NULL);
	(void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void sleep_ms(long ms)
{
	(void)nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* What is in pages that were written to through mmap() comes here before the mount goes. */
static void write_back(const char *mount_point)
{
	AUTO_CLOSE int fd = open(mount_point, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || syncfs(fd) < 0)
		log_line("what was written to mapped files and not synced may be lost");
}

static void end_loop(struct session *session)
{
	fuse_session_exit(session->fuse);
	while (!session->is_over) {
		(void)pthread_kill(session->loop_thread, SIGNAL_WAKE); /* it is there until it has joined us */
		sleep_ms(WAKE_STEP_MS);
	}
}

static bool is_in_sight(const struct session *session)
{
	return session->device == 0 || mount_point_device(session->mount_point) == session->device;
}

/* False: it is in use still. */
static bool unmount_at_a_signal(const struct session *session)
{
	if (!is_in_sight(session)) {
		log_line("told to end while something is open, and out of sight: that fails from now on");
		return false;
	}
	if (mount_point_unmount(session->mount_point, false))
		return true;
	log_line("told to end while something is open: that fails from now on");
	write_back(session->mount_point);
	(void)mount_point_unmount(session->mount_point, true); /* if it can't be, it stays as a dead one */
	return false;
}

static void *wait_for_signals(void *opaque)
{
	struct session *session = opaque;
	sigset_t signals = ending_signals();
	int number;

	(void)sigaddset(&signals, SIGNAL_WAKE); /* to this thread: the loop has ended by itself */
	(void)sigwait(&signals, &number);
	if (session->is_over)
		return NULL;
	if (unmount_at_a_signal(session))
		for (long waited_ms = 0; !session->is_over && waited_ms < GOODBYE_MS; waited_ms += WAKE_STEP_MS)
			sleep_ms(WAKE_STEP_MS);
	end_loop(session);
	return NULL;
}

static int start_signal_thread(struct session *session, struct failure *failure)
{
	sigset_t wakes, before;
	int error;

	(void)sigemptyset(&wakes);
	(void)sigaddset(&wakes, SIGNAL_WAKE);
	(void)pthread_sigmask(SIG_BLOCK, &wakes, &before);
	error = -pthread_create(&session->signal_thread, NULL, wait_for_signals, session);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error < 0 ? fail_errno(failure, error, "a thread for signals") : 0;
}

/* ---- mounting ---- */

static void say_ready(struct fuse_mount *mount)
{
	struct session *session = mount->opaque;

	session->ready(session->opaque);
}

static void make_ahead(struct fuse_mount *mount)
{
	const struct session *session = mount->opaque;

	if (geteuid() == 0)
		mount_point_set_read_ahead(session->mount_point, READ_AHEAD_KIB);
}

/* Those that come later win. For others the kernel goes by owners and modes: without that everybody could read
 * everything. */
static int make_arguments(const struct fs_options *options, struct fuse_args *ret_arguments, struct failure *failure)
{
	AUTO_FREE char *name = NULL;
	char *list = NULL; /* grown by libfuse, which escapes commas in the name */
	bool is_made = asprintf(&name, "fsname=%s", options->store_path) >= 0 &&
		       fuse_opt_add_opt_escaped(&list, name) == 0 && fuse_opt_add_opt(&list, "subtype=wherryfs") == 0;

	if (is_made && *options->passed != '\0')
		is_made = fuse_opt_add_opt(&list, options->passed) == 0;
	if (is_made && options->allow_other)
		is_made = fuse_opt_add_opt(&list, "allow_other,default_permissions") == 0;
	is_made = is_made && fuse_opt_add_arg(ret_arguments, "wherryfs") == 0 &&
		  fuse_opt_add_arg(ret_arguments, "-o") == 0 && fuse_opt_add_arg(ret_arguments, list) == 0;
	free(list);
	return is_made ? 0 : fail(failure, -ENOMEM, "mounting: out of memory");
}

/* It says a line in pieces. */
__attribute__((format(printf, 2, 0))) static void log_of_fuse(enum fuse_log_level level, const char *format,
							      va_list values)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static char line[FAILURE_MESSAGE_BYTES];
	size_t used_bytes;
	char *newline;

	if (level > FUSE_LOG_WARNING)
		return;
	WITH_LOCK(&lock);
	used_bytes = strlen(line);
	(void)vsnprintf(line + used_bytes, sizeof(line) - used_bytes, format, values);
	newline = strchr(line, '\n');
	if (newline == NULL && strlen(line) + 1 < sizeof(line))
		return;
	if (newline != NULL)
		*newline = '\0';
	log_line(line);
	line[0] = '\0';
}

static int mount_it(struct session *session, struct failure *failure)
{
	struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
	int error = make_arguments(session->options, &arguments, failure);

	fuse_set_log_func(log_of_fuse);
	if (error == 0) {
		session->fuse = fuse_session_new(&arguments, &fuse_mount_ops, sizeof(fuse_mount_ops), &session->mount);
		if (session->fuse == NULL)
			error = fail(failure, -EINVAL, "mounting on %s: FUSE doesn't take these options",
				     session->mount_point);
		session->mount.session = session->fuse;
	}
	fuse_opt_free_args(&arguments);
	if (error == 0 && fuse_session_mount(session->fuse, session->mount_point) != 0)
		error = fail(failure, -EIO, "mounting on %s: FUSE can't", session->mount_point);
	if (error == 0) {
		session->device = mount_point_device(session->mount_point);
		error = fuse_wire_attach(session->fuse, failure);
	}
	return error;
}

/*
 * libfuse unmounts by name whatever is there, unless it sees that its device is without a mount. A pipe that nobody reads
 * looks like that; the device is closed by what takes its number.
 */
static void hide_from_libfuse(struct fuse_session *fuse)
{
	int ends[2];

	if (fuse_session_fd(fuse) < 0 || pipe2(ends, O_CLOEXEC) < 0)
		return;
	(void)close(ends[0]);
	(void)dup3(ends[1], fuse_session_fd(fuse), O_CLOEXEC);
	(void)close(ends[1]);
}

static void end_fuse(struct session *session)
{
	if (!is_in_sight(session))
		hide_from_libfuse(session->fuse);
	fuse_session_unmount(session->fuse); /* if it was mounted, and is still */
	fuse_session_destroy(session->fuse);
}

/* ---- serving ---- */

static unsigned thread_count(void)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned threads = cores > 0 && cores <= THREADS_MOST ? (unsigned)cores * THREADS_A_CORE : THREADS_MOST;

	return threads < THREADS_LEAST ? THREADS_LEAST : threads > THREADS_MOST ? THREADS_MOST : threads;
}

static int serve(struct session *session, struct failure *failure)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int result;

	if (config == NULL)
		return fail(failure, -ENOMEM, "serving: out of memory");
	fuse_loop_cfg_set_clone_fd(config, 1);
	fuse_loop_cfg_set_max_threads(config, thread_count());
	fuse_loop_cfg_set_idle_threads(config, thread_count());
	result = fuse_session_loop_mt(session->fuse, config);
	fuse_loop_cfg_destroy(config);
	return result < 0 ? fail_errno(failure, result, "serving %s", session->mount_point) : 0;
}

static int serve_and_end(struct session *session, struct failure *failure)
{
	int error = start_signal_thread(session, failure);

	if (error < 0)
		return error;
	error = serve(session, failure);
	session->is_over = true;
	(void)pthread_kill(session->signal_thread, SIGNAL_WAKE); /* it is there until it is joined */
	(void)pthread_join(session->signal_thread, NULL);
	return error;
}

/* A folder on a folder, a file on a file: the kernel goes by what it was told at mounting. */
static int check_kinds(struct session *session, bool is_folder, struct failure *failure)
{
	struct found found;
	int error = tree_getattr(session->mount.tree, tree_root(session->mount.tree), &found, failure);

	if (error < 0 || S_ISDIR(found.stat.st_mode) == is_folder)
		return error;
	return fail(failure, is_folder ? -EISDIR : -ENOTDIR, "%s: %s is a %s, and this is none; make an empty one",
		    session->mount_point, session->options->root != NULL ? session->options->root : "a store",
		    is_folder ? "file" : "folder");
}

int session_run(const struct fs_options *options, const char *mount_point, bool is_folder, void (*ready)(void *opaque),
		void *opaque, struct failure *failure)
{
	struct tree_options tree_options = options->tree;
	struct session session = {.options = options,
				  .mount_point = mount_point,
				  .ready = ready,
				  .opaque = opaque,
				  .loop_thread = pthread_self(),
				  .mount = {.ready = say_ready, .used = make_ahead, .is_used = ATOMIC_FLAG_INIT}};
	bool maps_owners = options->tree.has_uid || options->tree.has_gid;
	int error;

	set_up_signals();
	tree_options.notices = &log_notices;
	session.mount.opaque = &session;
	session.mount.kernel_checks_acls = options->allow_other && !maps_owners;
	error = tree_open(&tree_options, &session.mount.tree, failure);
	if (error == 0)
		error = check_kinds(&session, is_folder, failure);
	if (error == 0)
		error = mount_it(&session, failure);
	if (error == 0)
		error = serve_and_end(&session, failure);
	if (session.fuse != NULL)
		end_fuse(&session);
	tree_close(session.mount.tree);
	return error;
}
