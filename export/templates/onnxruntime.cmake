# The archive of ONNX Runtime's releases, unpacked: cmake -DONNXRUNTIME_ROOT=onnxruntime-linux-x64-VERSION
find_path(ONNXRUNTIME_HEADERS onnxruntime_cxx_api.h HINTS ${ONNXRUNTIME_ROOT}/include PATH_SUFFIXES onnxruntime onnxruntime/core/session REQUIRED)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${ONNXRUNTIME_ROOT}/lib REQUIRED)
target_include_directories(judge PRIVATE ${ONNXRUNTIME_HEADERS})
target_link_libraries(judge PRIVATE ${ONNXRUNTIME_LIBRARY})
