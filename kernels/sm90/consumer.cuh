// What multiplies: a warpgroup and its 64 rows. The products of a tile are under way while the weights of the next are made.

#pragma once

#include "block.cuh"
#include "ring.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

// Of all lanes, the first's: the compiler then knows that it is the same for all.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffff, x, 0); }

// A warpgroup and its rows.
template <typename T, int D, typename Block, typename Shared>
struct Consumer {
    using QTile = typename Shared::QTile;
    using KeyTile = typename Shared::KeyTile;
    static constexpr int KEYS = Block::KEYS, CONSUMERS = Block::ROWS / 64;
    static constexpr bool HORIZON = Shared::HORIZON;
    // Whether warpgroups multiply by turns. To be chosen on a GPU.
    static constexpr bool TURNS = D <= 128;

    const Block &block;
    const Shared &shared;
    // Barriers of the turns.
    int turn, next_turn;
    LaneRows<Block> rows;
    Operand<QTile> q;
    Operand<KeyTile> k, v;
    float scale;
    // Of the last tile whose scores were begun.
    Slot slot;
    Scores<1, KEYS> scores;
    uint32_t weights[KEYS / 16][4];
    float out[1][D / 8][4];
    PendingSoftmax softmax;

    __device__ Consumer(const Block &block, const Shared &shared, int group)
        : block(block),
          shared(shared),
          turn(threadIdx.x / WARPGROUP),
          next_turn(turn == CONSUMERS ? 1 : turn + 1),
          rows{block, (int)threadIdx.x % WARPGROUP / 32 * 16 + (int)threadIdx.x % 32 / 4 + group * 64},
          q(shared.q, group * 64),
          k(KeyTile{shared.k.tiles}),
          v(KeyTile{shared.v.tiles}),
          scale(block.alibi.scale) {}

    // Warpgroups issue their products by turns, so that one makes weights while others multiply.
    __device__ void await_turn() const {
        if (TURNS) barrier_sync(turn, 2 * WARPGROUP);
    }
    __device__ void pass_turn() const {
        if (TURNS) barrier_arrive(next_turn, 2 * WARPGROUP);
    }

    // S = Q K^T.
    __device__ void multiply_qk(Slot slot) {
        const Operand<KeyTile> k_tile = k.further(slot.barrier * Shared::KeyRing::TILE_STEP);
#pragma unroll
        for (int c = 0; c < D / 16; ++c) wgmma<false>(scores.s[0], q.columns(c), k_tile.columns(c), c > 0, T());
        wgmma_commit();
    }

    // O += weights V.
    __device__ void multiply_pv(Slot slot) {
        const Operand<KeyTile> v_tile = v.further(slot.barrier * Shared::KeyRing::TILE_STEP);
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) wgmma<true>(out[0], weights[n], v_tile.rows(n), 1, T());
        wgmma_commit();
    }

    // The maxima, where any has grown.
    __device__ void publish() const {
        if (softmax.grown == 0) return;
        if (threadIdx.x % 4 == 0) {
#pragma unroll
            for (int h = 0; h < 2; ++h) shared.maxima[rows.first + h * 8] = softmax.max[h];
        }
        __syncwarp();
    }

    // Ends what the tile before has left under way, and prepares its weights for their product. It is the beginning of a round
    // of the loop: within one, ptxas would wait before the weights are made, and nothing would be under way meanwhile.
    __device__ void settle() {
        hold(scores.s[0]);
        if (HORIZON) publish();
        wgmma_wait<0>();
        hold(out[0]), hold(weights);
        // That of the tile before, or before the first tile of none: the producer knows.
        shared.v.release(slot.next());
        pack_weights(scores, weights, T());
        softmax.apply(out[0]);
        hold(scores.s[0]), hold(out[0]), hold(weights);
    }

    // S of the next tile and O of this one are under way together, and the weights of the next are made while O is.
    template <typename Weigh>
    __device__ void step(Weigh weigh) {
        settle();
        const Slot next = slot.next();
        if (!HORIZON) shared.k.wait_full(next);
        await_turn();
        wgmma_fence();
        multiply_qk(next);
        shared.v.wait_full(slot);
        wgmma_fence();
        multiply_pv(slot);
        pass_turn();
        wgmma_wait<1>();
        hold(scores.s[0]);
        shared.k.release(next);
        slot = next;
        weigh();
    }

    // The step after this one: with a horizon, the one whose keys arrive.
    __device__ int following(int step) const {
        if (!HORIZON) return step + 1;
        const Slot next = slot.next();
        shared.k.wait_full(next);
        return uniform(shared.step(next));
    }

    // Of the scores of any tile.
    __device__ void weigh_any(int step) {
        if (block.alibi.cap_scale != 0) scores.cap(block.alibi);
        scores.bias_and_mask(rows, block.first_key(step));
        const float constant[1][2] = {};
        softmax.weigh(scores, scale, constant);
    }

    // Of those of a tile that all rows see and stand on one side of.
    __device__ void weigh(const SideRows &side_rows, int first_key) {
        float constant[1][2];
        scores.bias(side_rows, first_key, 1, constant);
        softmax.weigh(scores, scale, constant);
    }

    __device__ void run() {
#pragma unroll
        for (int i = 0; i < D / 2; ++i) out[0][i / 4][i % 4] = 0;
        const int tiles = uniform(block.tiles);
        if (tiles == 0) return;
        if (next_turn == 1) pass_turn();
        mbarrier_wait(shared.q_full, 0);
        shared.k.wait_full(slot);
        wgmma_fence();
        multiply_qk(slot);
        wgmma_wait<0>();
        hold(scores.s[0]);
        shared.k.release(slot);
        weigh_any(0);

        int at = following(0);
#pragma unroll 1
        for (int run = 0; run < 5; ++run) {
            const int end = uniform(block.ends[run]);
            if (run % 2 == 0) {
#pragma unroll 1
                for (; at < end; at = following(at)) step([&] { weigh_any(at); });
            } else if (at < end) {
                const SideRows side_rows(rows, run == 1 ? 1 : -1);
                int apart = run == 1 ? -KEYS : KEYS;
                hold(apart);
                int first_key = uniform(block.first_key(at));
#pragma unroll 1
                while (at < end) {
                    step([&] { weigh(side_rows, first_key); });
                    const int next = following(at);
                    first_key += (next - at) * apart;
                    at = next;
                }
            }
        }

        // The last turn that is passed is the first one's.
        if (turn == 1) await_turn();
        settle();
        shared.v.wait_full(slot);
        wgmma_fence();
        multiply_pv(slot);
        wgmma_wait<0>();
        hold(out[0]);
    }
};
