// Layer maps (six with two branches) -> anomaly maps, float32 (N, HEIGHT, WIDTH), and the maximum of each strip, float32 (N, STRIPS).
// At 256x256, of which all figures here are: strips of 32 rows, 8 of them.
// The image score is the largest of an image's 8 peaks; the processor takes it of the 32 bytes that it downloads, so the
// score needs no atomic, no buffer to be reset and no second launch.
//
// Fusion and blur are ONE launch. Apart, the fused map would be written and read again (32,768 bytes an image) between two
// launches; together, a strip fuses the 18 to 20 rows that it needs instead of 8, from layer maps that lie in the L2.
//
// Bytes moved an image: 43,008 read (six FP32 maps, 2 * (64*64 + 32*32 + 16*16) * 4; FP16 half of it; what strips share are
// L2 hits), 262,144 + 32 written, and 12,800 of tables read once a batch: 0.305 MB. Floor by the data sheets' bandwidths:
// 0.064 us at 4.8 TB/s (H200), 1.5 us at 204.8 GB/s (Orin); at batch 32 9.8 MB, 2.0 us and 48 us.
// Arithmetic: (256*64 + 256*256) * 10 = 0.82 M multiply-adds an image.
#include "strip.h"

extern "C" __global__ void __launch_bounds__(nnet::STRIP_THREADS)
anomaly_map(const nnet::LayerMaps* layer_maps, const nnet::Enlarging* enlarging, const nnet::Filter* filter,
            float* anomaly_maps, float* peaks) {
    nnet::run_strip<nnet::STRIP_THREADS>(*layer_maps, *enlarging, *filter, anomaly_maps, peaks);
}
