# find_package(matrixrtc) gives the target matrixrtc::matrixrtc: the library, matrixrtc.h and matrixrtc.hpp (C++17).
if(NOT TARGET matrixrtc::matrixrtc)
  get_filename_component(_matrixrtc_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  add_library(matrixrtc::matrixrtc SHARED IMPORTED)
  set_target_properties(matrixrtc::matrixrtc PROPERTIES
    IMPORTED_LOCATION "${_matrixrtc_prefix}/lib/libmatrixrtc.so.1"
    IMPORTED_SONAME "libmatrixrtc.so.1"
    INTERFACE_INCLUDE_DIRECTORIES "${_matrixrtc_prefix}/include")
  unset(_matrixrtc_prefix)
endif()
