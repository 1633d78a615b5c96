# SPDX-License-Identifier: Apache-2.0
#
# A folder is a library, and sees only what it links.
#
# Headers are included from the root of the tree: "common/failure.h". With the
# root itself on the include path everybody would see everything. So each folder
# gets an include directory of its own in the build tree, which holds nothing
# but a link to the folder:
#
#     BUILD/include/common/common -> SOURCE/common
#
# and that directory is a usage requirement of the folder's library. Who does
# not link wherry_common has no directory on its path in which "common/…" can be
# found; who links wherry_catalog privately keeps it from those above.

function(wherry_make_include_directory folder ret_directory)
	set(directory ${CMAKE_BINARY_DIR}/include/${folder})
	file(MAKE_DIRECTORY ${directory})
	file(CREATE_LINK ${CMAKE_SOURCE_DIR}/${folder} ${directory}/${folder} SYMBOLIC)
	set(${ret_directory} ${directory} PARENT_SCOPE)
endfunction()

# wherry_add_folder(FOLDER [PUBLIC target…] [PRIVATE target…])
#
# Makes wherry_FOLDER of the *.c in the folder. PUBLIC is for what the folder's
# own header includes, PRIVATE for what only its sources do.
function(wherry_add_folder folder)
	cmake_parse_arguments(PARSE_ARGV 1 links "" "" "PUBLIC;PRIVATE")
	file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
	wherry_make_include_directory(${folder} directory)
	add_library(wherry_${folder} STATIC ${sources})
	target_include_directories(wherry_${folder} PUBLIC ${directory})
	target_link_libraries(wherry_${folder} PUBLIC ${links_PUBLIC} PRIVATE ${links_PRIVATE})
endfunction()
