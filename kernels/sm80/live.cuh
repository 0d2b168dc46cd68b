// Which tiles of keys a block of rows reads, where not all of them: what live.cu tells decode.cu.

#pragma once

#include "common/params.h"

// The list of a block of rows: how many tiles, and then which.
template <int ROWS>
__device__ inline int32_t *live_tiles(const AttentionParams &p, int batch, int head_k, int first_r) {
    const int heads_k = p.heads_q / p.group, blocks = (p.seqlen_q * p.group + ROWS - 1) / ROWS;
    const int64_t index = ((int64_t)batch * heads_k + head_k) * blocks + first_r / ROWS;
    return (int32_t *)p.live + index * (1 + p.tiles);
}
