# SPDX-License-Identifier: Apache-2.0
#
# How every C file of the tree is compiled and every program linked.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON) # gnu17: cleanup attributes, statement expressions
set(CMAKE_C_VISIBILITY_PRESET hidden)

# Position independent throughout: programs are PIE, and the libraries go into shared objects as well.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
check_pie_supported(LANGUAGES C)

if(NOT CMAKE_BUILD_TYPE)
	set(CMAKE_BUILD_TYPE Release)
endif()

# No -DNDEBUG: an assertion that does not hold has to stop the program before it writes to a disk.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong")
set(CMAKE_C_FLAGS_DEBUG "-Og -g3")

add_compile_definitions(_GNU_SOURCE)
add_compile_options(
	-Wall -Wextra -Wshadow -Wconversion -Wvla -Wformat=2 -Wmissing-prototypes -Wwrite-strings
	-fno-omit-frame-pointer
	-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=) # the same __FILE__ wherever the tree lies
if(WHERRY_WERROR)
	add_compile_options(-Werror)
endif()
add_link_options(-Wl,-z,relro,-z,now)

if(WHERRY_SANITIZE)
	add_compile_options(-fsanitize=${WHERRY_SANITIZE})
	add_link_options(-fsanitize=${WHERRY_SANITIZE})
	if(WHERRY_SANITIZE MATCHES "undefined")
		add_compile_options(-fno-sanitize-recover=undefined)
	endif()
endif()

if(WHERRY_FUZZ)
	if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
		message(FATAL_ERROR "WHERRY_FUZZ takes clang: cmake --preset fuzz, or -DCMAKE_C_COMPILER=clang")
	endif()
	# Everything tells where it goes; the fuzzer itself, with its main(), is linked by tests/fuzz alone.
	add_compile_options(-fsanitize=fuzzer-no-link)
	# What a plan copies of each disk and partition to look at: 16 times as many disks a second.
	add_compile_definitions(PLAN_EDGE_BYTES=65536)
endif()

if(WHERRY_COVERAGE)
	add_compile_options(--coverage)
	add_link_options(--coverage)
endif()
