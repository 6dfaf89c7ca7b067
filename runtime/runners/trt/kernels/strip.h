// A block of anomaly_map.cu and anomaly_map_wide.cu: the phases of blur.h with barriers between them. For the GPU alone.
#pragma once
#include "blur.h"

namespace nnet {

template <int THREADS>
__device__ __forceinline__ void run_strip(const LayerMaps& layer_maps, const Enlarging& enlarging, const Filter& filter,
                                          float* anomaly_maps, float* peaks) {
    __shared__ StripMemory<THREADS> memory;
    const int strip = blockIdx.x, image = blockIdx.y, thread = threadIdx.x;
    fuse_strip(memory, layer_maps, enlarging, filter, image, strip, thread);
    __syncthreads();
    filter_down(memory, filter, strip, thread);
    __syncthreads();
    filter_across(memory, filter, anomaly_maps, image, strip, thread);
    for (int distance = THREADS / 2; distance > 0; distance /= 2) {
        __syncthreads();
        reduce_orders(memory, distance, thread);
    }
    store_peak(memory, peaks, image, strip, thread);  // thread 0 wrote orders[0] itself
}

}  // namespace nnet
