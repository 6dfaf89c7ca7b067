# The wheel has headers too: cmake -DOpenVINO_DIR=$(python -c 'import openvino, pathlib; print(pathlib.Path(openvino.__file__).parent / "cmake")')
find_package(OpenVINO REQUIRED COMPONENTS Runtime)
target_link_libraries(judge PRIVATE openvino::runtime)
