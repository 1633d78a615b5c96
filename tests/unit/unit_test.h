/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cmocka as every unit test here includes it: after the standard headers that
 * its own header takes for granted, and without its macro fail(), which stands
 * in the way of the function of that name in common/failure.h. fail_msg() is there.
 */
#ifndef WHERRY_TESTS_UNIT_TEST_H
#define WHERRY_TESTS_UNIT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#undef fail
#undef fail_msg
#define fail_msg(...)                      \
	do {                               \
		print_error(__VA_ARGS__);  \
		print_error("\n");         \
		_fail(__FILE__, __LINE__); \
	} while (0)

#endif
