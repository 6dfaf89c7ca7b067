// A panel, uint8 BGR (h, w, 3), under the coloured anomaly map: the picture of the same size. One thread a pixel.
//
// Bytes moved: 3 * h * w read, as many written, 262,144 of the map and 768 of colours read: 4.4 MB for 960x720. Floor by the
// data sheets' bandwidths: 0.9 us at 4.8 TB/s (H200), 22 us at 204.8 GB/s (Orin).
#include "overlay.h"

extern "C" __global__ void __launch_bounds__(nnet::OVERLAY_THREADS)
overlay(const uint8_t* panel, const float* map, const uint8_t* colours, float scale_end, float heat_share, int height,
        int width, uint8_t* picture) {
    const int64_t place = static_cast<int64_t>(blockIdx.x) * nnet::OVERLAY_THREADS + threadIdx.x;
    if (place < static_cast<int64_t>(height) * width)
        nnet::paint_pixel(panel, map, colours, scale_end, heat_share, height, width, place, picture);
}
