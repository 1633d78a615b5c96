/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Release by scope: a variable declared with one of these is released when it
 * goes out of scope, whichever way the function is left.
 *
 *     AUTO_FREE char *name = NULL;
 *     AUTO_CLOSE int fd = open(...);
 *     WITH_LOCK(&mutex);                  -- held until the scope ends
 *
 * take_ptr() and take_fd() hand the resource on and leave nothing behind.
 */
#ifndef WHERRY_COMMON_CLEANUP_H
#define WHERRY_COMMON_CLEANUP_H

#include <assert.h>
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *address)
{
	free(*(void **)address);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		(void)close(*fd); /* nothing was written through it that a failed close could lose */
}

static inline void cleanup_fclose(FILE **file)
{
	if (*file != NULL)
		(void)fclose(*file); /* reading only; writers call fclose themselves and look */
}

static inline void cleanup_closedir(DIR **folder)
{
	if (*folder != NULL)
		(void)closedir(*folder); /* only read */
}

static inline pthread_mutex_t *cleanup_lock(pthread_mutex_t *mutex)
{
	int error = pthread_mutex_lock(mutex);
	assert(error == 0);
	(void)error;
	return mutex;
}

static inline void cleanup_unlock(pthread_mutex_t **mutex)
{
	if (*mutex != NULL)
		(void)pthread_mutex_unlock(*mutex); /* cannot fail for a mutex this thread holds */
}

#define AUTO_FREE __attribute__((cleanup(cleanup_free)))
#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))
#define AUTO_FCLOSE __attribute__((cleanup(cleanup_fclose)))
#define AUTO_CLOSEDIR __attribute__((cleanup(cleanup_closedir)))
#define AUTO(function) __attribute__((cleanup(function)))

#define CLEANUP_JOIN_(a, b) a##b
#define CLEANUP_NAME_(a, b) CLEANUP_JOIN_(a, b)
#define WITH_LOCK(mutex)                                                                                               \
	__attribute__((cleanup(cleanup_unlock), unused)) pthread_mutex_t *CLEANUP_NAME_(lock_, __LINE__) =             \
		cleanup_lock(mutex)

static inline int take_fd(int *fd)
{
	int taken = *fd;
	*fd = -1;
	return taken;
}

#define take_ptr(variable)                                                                                             \
	({                                                                                                             \
		__typeof__(variable) taken_ = (variable);                                                              \
		(variable) = NULL;                                                                                     \
		taken_;                                                                                                \
	})

#endif
