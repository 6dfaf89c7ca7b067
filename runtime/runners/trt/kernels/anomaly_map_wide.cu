// anomaly_map.cu's result, bit by bit, with four times the threads for a strip: a block's phases wait for one another, and on
// the H200 one of 256 threads took 23 us whatever the batch, of which the bytes explain 0.1 to 2.3.
// Predicted of a block there: fusing 2 rounds instead of 5 (each a chain of loads and a power a scale), 2 instead of 8 places
// down and 8 instead of 32 rows across, for which it reads 82,000 values from shared memory: about 6 us for one image. 32 images
// are 256 blocks, two of which fit a multiprocessor (32 registers at most, hence the bounds): one wave, about 10 us.
// NOT MEASURED: no GPU has run it. `python -m nnet_edge.benchmarks.gpu.kernels --variant wide` compares; the runner uses
// anomaly_map.cu.
#include "strip.h"

#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000  // 2,048 threads a multiprocessor, elsewhere fewer
#define NNET_WIDE_BLOCKS 2
#else
#define NNET_WIDE_BLOCKS 1
#endif

extern "C" __global__ void __launch_bounds__(nnet::WIDE_THREADS, NNET_WIDE_BLOCKS)
anomaly_map_wide(const nnet::LayerMaps* layer_maps, const nnet::Enlarging* enlarging, const nnet::Filter* filter,
                 float* anomaly_maps, float* peaks) {
    nnet::run_strip<nnet::WIDE_THREADS>(*layer_maps, *enlarging, *filter, anomaly_maps, peaks);
}
