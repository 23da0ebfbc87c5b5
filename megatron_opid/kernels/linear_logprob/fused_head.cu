// LM head with row statistics in the epilogue, for Hopper (sm_90a): float32 logits never leave the registers.
//
//   logits[C, V] = hidden[C, H] · weight[V, H]ᵀ, one tile of 128 rows × 256 columns per thread block at a time.
//
// Per row and tile of 256 columns it writes max z, Σexp(z − max) and, if asked, Σexp(z − max)·(z − max), with
// z = logit / temperature; the target's z; and, for training, exp(z − max) rounded to bf16, from which the gradient is
// made once the row's sum is known. The tile shape and the order of additions depend on no argument, so a row has the
// same bits whatever rows it is computed with.
//
// Two consumer warpgroups (64 rows each) run wgmma m64n256k16; one producer thread feeds 4 stages of 64-wide K slices by
// TMA. Two thread blocks form a cluster: they work on neighbouring rows and the same columns, each loading half of the
// weight tile and multicasting it to both, which halves the traffic out of L2. The grid is persistent and walks column by
// column over a group of rows that stays in L2.

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 4, kCluster = 2, kConsumers = 2;
constexpr int kGroup = 8;  // row blocks (of 256 rows) that are walked together
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kRowBytes = kDepth * 2;  // one swizzle atom: 128 bytes
constexpr uint32_t kStageBytes = (kRows + kColumns) * kRowBytes;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMasked = -1e30f;  // finite: exp2 of it is 0 and 0 · it stays 0

struct __align__(1024) Shared {
  uint8_t hidden[kStages][kRows * kRowBytes];
  uint8_t weight[kStages][kColumns * kRowBytes];
  uint64_t full[kStages], empty[kStages];
};

struct Arguments {
  const int64_t* targets;            // [C], counted from this shard's first column
  const float* inverse_temperature;  // [C]
  float *tile_max, *tile_sum;        // [C, tiles]
  float* tile_moment;                // [C, tiles] or null
  float* target_logit;               // [C], filled with −inf by the caller
  __nv_bfloat16* exponentials;       // [C, tiles · 256] or null
  int rows, columns, depth;
};

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

__device__ void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Only TMA writes and wgmma reads are ordered by these barriers, so neither the arrival nor the wait below asks for cluster
// scope: that would put a fence over all of memory into every step.
__device__ void arrive_in_cluster(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
      ::"r"(shared_address(barrier)), "r"(rank) : "memory");
}

__device__ void wait_barrier(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}"
      ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

__device__ void load_hidden(void* to, const CUtensorMap* map, uint64_t* barrier, int k, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(k), "r"(row) : "memory");
}

__device__ void load_weight(void* to, const CUtensorMap* map, uint64_t* barrier, int k, int group, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %5, %5, %5, %4}], [%2], %6;"
      ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(k), "r"(group), "r"(0), "h"(mask)
      : "memory");
}

// Shared-memory matrix descriptor: K-major, 128-byte swizzle, 1024 bytes between groups of 8 rows.
__device__ uint64_t matrix_descriptor(const void* p) {
  const uint64_t address = shared_address(p);
  return ((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

#define ACC8(i) "+f"(d[i]), "+f"(d[i+1]), "+f"(d[i+2]), "+f"(d[i+3]), "+f"(d[i+4]), "+f"(d[i+5]), "+f"(d[i+6]), "+f"(d[i+7])

__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 0;\n}"
      : ACC8(0), ACC8(8), ACC8(16), ACC8(24), ACC8(32), ACC8(40), ACC8(48), ACC8(56), ACC8(64), ACC8(72), ACC8(80),
        ACC8(88), ACC8(96), ACC8(104), ACC8(112), ACC8(120)
      : "l"(a), "l"(b), "r"(accumulate));
}

__device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

__device__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Which of a tile's 256 columns accumulator group j (0..31), element b (0, 1) is in lane q (0..3) of a quad. The weight's
// tensor map permutes rows within 32 so that four groups of a lane are 8 neighbouring columns: one 16-byte store.
__device__ constexpr int column_of(int j, int q, int b) { return 32 * (j / 4) + 8 * q + 2 * (j % 4) + b; }

// The order in which clusters take tiles of 256 rows × 256 columns.
struct Schedule {
  int row_blocks, column_blocks;

  __device__ Schedule(const Arguments& args)
      : row_blocks((args.rows + kRows * kCluster - 1) / (kRows * kCluster)),
        column_blocks((args.columns + kColumns - 1) / kColumns) {}

  __device__ int tiles() const { return row_blocks * column_blocks; }

  __device__ void locate(int tile, int& row_block, int& column_block) const {
    const int first = tile / (kGroup * column_blocks) * kGroup, size = min(kGroup, row_blocks - first);
    const int within = tile - first * column_blocks;
    row_block = first + within % size;
    column_block = within / size;
  }
};

struct Producer {
  Shared& shared;
  const CUtensorMap *hidden_map, *weight_map;

  __device__ void run(const Schedule& schedule, int num_k) {
    const uint32_t rank = cluster_rank();
    int slot = 0;
    uint32_t phase = 0;
    for (int tile = blockIdx.x / kCluster; tile < schedule.tiles(); tile += gridDim.x / kCluster) {
      int row_block, column_block;
      schedule.locate(tile, row_block, column_block);
      const int row = (row_block * kCluster + rank) * kRows;
      const int group = column_block * (kColumns / 32) + rank * (kColumns / 32 / kCluster);
      for (int k = 0; k < num_k; ++k) {
        wait_barrier(&shared.empty[slot], phase ^ 1);
        expect_bytes(&shared.full[slot], kStageBytes);
        load_hidden(shared.hidden[slot], hidden_map, &shared.full[slot], k * kDepth, row);
        load_weight(shared.weight[slot] + rank * (kColumns / kCluster * kRowBytes), weight_map, &shared.full[slot],
                    k * kDepth, group, (1 << kCluster) - 1);
        if (++slot == kStages) slot = 0, phase ^= 1;
      }
    }
  }
};

template <bool kStore, bool kEntropy>
__device__ __forceinline__ void epilogue(float (&acc)[128], const Arguments& args, int row0, int first_column,
                                         const int (&target)[2], const float (&inverse_temperature)[2]) {
  const int q = threadIdx.x % 4;
  const int valid = args.columns - first_column;
  if (valid < kColumns) {
#pragma unroll
    for (int i = 0; i < 128; ++i)
      if (column_of(i / 4, q, i % 2) >= valid) acc[i] = kMasked;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + 8 * r;
    const int local = target[r] - first_column;
    if (local >= 0 && local < min(kColumns, valid) && local / 8 % 4 == q && row < args.rows) {
#pragma unroll
      for (int i = 0; i < 64; ++i)
        if (column_of(i / 2, q, i % 2) == local)
          args.target_logit[row] = acc[i / 2 * 4 + 2 * r + i % 2] * inverse_temperature[r];
    }
    float maximum = acc[2 * r];
#pragma unroll
    for (int i = 1; i < 64; ++i) maximum = fmaxf(maximum, acc[i / 2 * 4 + 2 * r + i % 2]);
    maximum = quad_max(maximum);
    const float scale = inverse_temperature[r] * kLog2E;
    const float shift = maximum * scale;
    float sum = 0, moment = 0;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      float& value = acc[i / 2 * 4 + 2 * r + i % 2];
      const float exponent = fmaf(value, scale, -shift);
      value = exp2_fast(exponent);
      sum += value;
      if (kEntropy) moment = fmaf(value, exponent, moment);
    }
    // `shift` is rounded: what that adds to every exponent is taken out of the sum again.
    sum = quad_sum(sum) * exp2_fast(-fmaf(maximum, scale, -shift));
    if (kEntropy) moment = quad_sum(moment);
    if (row < args.rows) {
      const int tiles = (args.columns + kColumns - 1) / kColumns;
      const int64_t at = static_cast<int64_t>(row) * tiles + first_column / kColumns;
      if (q == 0) args.tile_max[at] = maximum * inverse_temperature[r];
      if (q == 1) args.tile_sum[at] = sum;
      if (kEntropy && q == 2) args.tile_moment[at] = moment * kLn2;
      if (kStore) {
        __nv_bfloat16* to = args.exponentials + at * kColumns + 8 * q;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float* from = &acc[16 * i + 2 * r];
          const uint4 eight = {pack(from[0], from[1]), pack(from[4], from[5]), pack(from[8], from[9]),
                               pack(from[12], from[13])};
          __stcs(reinterpret_cast<uint4*>(to + 32 * i), eight);
        }
      }
    }
  }
}

template <bool kStore, bool kEntropy>
struct Consumer {
  Shared& shared;
  const Arguments& args;

  __device__ void release(int slot) {
    if (threadIdx.x % 128 < kCluster) arrive_in_cluster(&shared.empty[slot], threadIdx.x % 128);
  }

  __device__ void run(const Schedule& schedule, int num_k) {
    const int warpgroup = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
    const uint32_t rank = cluster_rank();
    int slot = 0;
    uint32_t phase = 0;
    float acc[128];
    for (int tile = blockIdx.x / kCluster; tile < schedule.tiles(); tile += gridDim.x / kCluster) {
      int row_block, column_block;
      schedule.locate(tile, row_block, column_block);
      const int row0 =
          (row_block * kCluster + rank) * kRows + warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4;
      int target[2];
      float inverse_temperature[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = min(row0 + 8 * r, args.rows - 1);
        target[r] = static_cast<int>(args.targets[row]);
        inverse_temperature[r] = args.inverse_temperature[row];
      }
      int previous = slot;
      for (int k = 0; k < num_k; ++k) {
        wait_barrier(&shared.full[slot], phase);
        const uint64_t a = matrix_descriptor(shared.hidden[slot] + warpgroup * 64 * kRowBytes);
        const uint64_t b = matrix_descriptor(shared.weight[slot]);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kDepth / 16; ++i) wgmma(acc, a + 2 * i, b + 2 * i, k > 0 || i > 0);
        wgmma_commit();
        if (k > 0) {
          wgmma_wait<1>();
          release(previous);
        }
        previous = slot;
        if (++slot == kStages) slot = 0, phase ^= 1;
      }
      wgmma_wait<0>();
      release(previous);
      epilogue<kStore, kEntropy>(acc, args, row0, column_block * kColumns, target, inverse_temperature);
    }
  }
};

template <bool kStore, bool kEntropy>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    head_kernel(const __grid_constant__ CUtensorMap hidden_map, const __grid_constant__ CUtensorMap weight_map,
                const Arguments args) {
  extern __shared__ uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t(1023));
  const Schedule schedule(args);
  const int num_k = args.depth / kDepth;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(&shared.full[i], 1);
      init_barrier(&shared.empty[i], kConsumers * kCluster);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) Producer{shared, &hidden_map, &weight_map}.run(schedule, num_k);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Consumer<kStore, kEntropy>{shared, args}.run(schedule, num_k);
  }
  cluster_sync();  // the other block may still be writing into this one's shared memory
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  return reinterpret_cast<Encode>(function);
}

template <int kRank>
bool encode(CUtensorMap* map, const void* base, const uint64_t (&sizes)[kRank], const uint64_t (&strides)[kRank - 1],
            const uint32_t (&box)[kRank]) {
  static const Encode encoder = tensor_map_encoder();
  uint32_t element_strides[kRank];
  for (uint32_t& stride : element_strides) stride = 1;
  return encoder != nullptr &&
         encoder(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(base), sizes, strides, box,
                 element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <bool kStore, bool kEntropy>
cudaError_t launch(const CUtensorMap& hidden_map, const CUtensorMap& weight_map, const Arguments& args, int blocks,
                   cudaStream_t stream) {
  const int bytes = sizeof(Shared) + 1024;
  auto* kernel = head_kernel<kStore, kEntropy>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kThreads, bytes, stream>>>(hidden_map, weight_map, args);
  return cudaGetLastError();
}

}  // namespace

// hidden [rows, depth] and weight [weight_rows, depth], bf16, contiguous; depth a multiple of 64, weight_rows of 32;
// columns ≤ weight_rows are the valid ones; blocks: how many run at once, an even number. Returns a cudaError_t.
extern "C" int head_statistics(const void* hidden, const void* weight, const int64_t* targets,
                               const float* inverse_temperature, float* tile_max, float* tile_sum, float* tile_moment,
                               float* target_logit, void* exponentials, int rows, int weight_rows, int columns,
                               int depth, int blocks, void* stream) {
  const uint64_t pitch = uint64_t(depth) * 2;
  CUtensorMap hidden_map, weight_map;
  const bool encoded =
      encode<2>(&hidden_map, hidden, {uint64_t(depth), uint64_t(rows)}, {pitch}, {kDepth, kRows}) &&
      // Rows of the weight as (32-row group, pair-in-8, 8-column run, element): see column_of.
      encode<5>(&weight_map, weight, {uint64_t(depth), 2, 4, 4, uint64_t(weight_rows) / 32},
                {pitch, 8 * pitch, 2 * pitch, 32 * pitch}, {kDepth, 2, 4, 4, kColumns / 32 / kCluster});
  if (!encoded) return cudaErrorInvalidValue;
  const Arguments args = {targets,      inverse_temperature, tile_max, tile_sum, tile_moment,
                          target_logit, static_cast<__nv_bfloat16*>(exponentials), rows, columns, depth};
  auto* run = exponentials ? (tile_moment ? launch<true, true> : launch<true, false>)
                           : (tile_moment ? launch<false, true> : launch<false, false>);
  return run(hidden_map, weight_map, args, blocks, static_cast<cudaStream_t>(stream));
}
