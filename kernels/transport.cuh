// What carries a rule's arithmetic over memory: the loop of every sweep, and its sums in their one fixed shape. NVRTC
// compiles it with the printed rule; so does g++, for tests.
//
// It needs no header; in front stands how many threads a block has, FGD_THREADS. Whoever compiles it switches
// contraction and flush-to-zero off, and IEEE division and root on: the results are then those of every other backend,
// bit for bit.

typedef long long i64;

#define FGD_WARP 32

static __device__ __forceinline__ float fgd_sqrt(float x) { return __fsqrt_rn(x); }
static __device__ __forceinline__ double fgd_sqrt(double x) { return __dsqrt_rn(x); }
static __device__ __forceinline__ float fgd_abs(float x) { return fabsf(x); }
static __device__ __forceinline__ double fgd_abs(double x) { return fabs(x); }
static __device__ __forceinline__ float fgd_copysign(float x, float y) { return copysignf(x, y); }
static __device__ __forceinline__ double fgd_copysign(double x, double y) { return copysign(x, y); }

// A row of the table of tiles; the columns of fastgd.kernels.blocks.
struct fgd_Tile {
    i64 lo, hi, row, segment, first;
};

// N neighbours, loaded and stored at once.
template <class T, int N> struct alignas(N * sizeof(T)) fgd_Pack {
    T e[N];
};

// A pointer that the compiler knows to be into global memory: a generic load is slower.
template <class T> static __device__ __forceinline__ T *fgd_global(T *pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

// ---- sweeps ---------------------------------------------------------------------------------------------------------
// `Rule` is printed: a type T; the counts ARRAYS, SCALARS and SUMS; READ and WRITTEN, a bit for each array; and
// `apply(a, row, t)`, which takes the elements a and a row of scalars, and gives new elements and terms of sums.

// Where the arrays of a tile's segment lie, and its scalars.
template <class Rule> struct fgd_Place {
    typename Rule::T *array[Rule::ARRAYS];
    typename Rule::T row[Rule::SCALARS];

    __device__ __forceinline__ fgd_Place(typename Rule::T *const *arrays, const typename Rule::T *rows,
                                         const fgd_Tile &tile) {
#pragma unroll
        for (int a = 0; a < Rule::ARRAYS; a++) array[a] = fgd_global(arrays[tile.segment * Rule::ARRAYS + a]);
#pragma unroll
        for (int s = 0; s < Rule::SCALARS; s++) row[s] = rows[tile.row * Rule::SCALARS + s];
    }

    // Brings N elements from i on up to date, and gives their terms.
    template <int N> __device__ __forceinline__ void update(i64 i, typename Rule::T (&term)[N][Rule::SUMS]) const {
        typedef fgd_Pack<typename Rule::T, N> Pack;
        Pack x[Rule::ARRAYS];
#pragma unroll
        for (int a = 0; a < Rule::ARRAYS; a++) {
            if (Rule::READ >> a & 1) x[a] = *reinterpret_cast<const Pack *>(array[a] + i);
            else x[a] = Pack();
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            typename Rule::T element[Rule::ARRAYS];
#pragma unroll
            for (int a = 0; a < Rule::ARRAYS; a++) element[a] = x[a].e[e];
            Rule::apply(element, row, term[e]);
#pragma unroll
            for (int a = 0; a < Rule::ARRAYS; a++) x[a].e[e] = element[a];
        }
#pragma unroll
        for (int a = 0; a < Rule::ARRAYS; a++)
            if (Rule::WRITTEN >> a & 1) *reinterpret_cast<Pack *>(array[a] + i) = x[a];
    }
};

// A sweep over a table of tiles, a block of threads to each; N divides the length of each tile.
template <class Rule, int N>
static __device__ __forceinline__ void fgd_sweep(typename Rule::T *const *arrays, const typename Rule::T *rows,
                                                 const fgd_Tile *table, i64 tiles) {
    for (i64 b = blockIdx.x; b < tiles; b += gridDim.x) {
        const fgd_Tile tile = table[b];
        const fgd_Place<Rule> place(arrays, rows, tile);
#pragma unroll 1
        for (i64 i = tile.lo + N * (int)threadIdx.x; i < tile.hi; i += N * FGD_THREADS) {
            typename Rule::T term[N][Rule::SUMS];
            place.template update<N>(i, term);
        }
    }
}

// A sweep with sums. A tile is one block of a sum and has a team of FGD_THREADS / N threads, so that each of them has N
// of its lanes for itself: no term changes hands before the lanes are added to each other.
template <class Rule, int N>
static __device__ __forceinline__ void fgd_sums(typename Rule::T *const *arrays, const typename Rule::T *rows,
                                                const fgd_Tile *table, i64 tiles, double *block_sums) {
    typedef typename Rule::T T;
    const int TEAM = FGD_THREADS / N;
    const int team = (int)threadIdx.x / TEAM, member = (int)threadIdx.x % TEAM;
    __shared__ fgd_Pack<T, N> shared[Rule::SUMS][N][TEAM / 2];
    for (i64 b = (i64)blockIdx.x * N; b < tiles; b += (i64)gridDim.x * N) {
        const bool has = b + team < tiles;  // a team without a tile goes along, as barriers are for all
        const fgd_Tile tile = table[has ? b + team : b];
        const i64 hi = has ? tile.hi : tile.lo;
        const fgd_Place<Rule> place(arrays, rows, tile);
        T lane[Rule::SUMS][N];
#pragma unroll
        for (int k = 0; k < Rule::SUMS; k++)
#pragma unroll
            for (int e = 0; e < N; e++) lane[k][e] = T(0);
            // what only reads has registers left for more loads at once
#pragma unroll(Rule::WRITTEN ? 1 : 4)
        for (i64 i = tile.lo + N * member; i < hi; i += FGD_THREADS) {
            T term[N][Rule::SUMS];
            place.template update<N>(i, term);
#pragma unroll
            for (int e = 0; e < N; e++)
#pragma unroll
                for (int k = 0; k < Rule::SUMS; k++) lane[k][e] += term[e][k];
        }
        // the binary tree: between warps through shared memory, in the first one by shuffles, in its first thread alone
        for (int by = TEAM / 2; by >= FGD_WARP; by /= 2) {
            __syncthreads();
            if (member >= by && member < 2 * by)
#pragma unroll
                for (int k = 0; k < Rule::SUMS; k++)
#pragma unroll
                    for (int e = 0; e < N; e++) shared[k][team][member - by].e[e] = lane[k][e];
            __syncthreads();
            if (member < by)
#pragma unroll
                for (int k = 0; k < Rule::SUMS; k++)
#pragma unroll
                    for (int e = 0; e < N; e++) lane[k][e] += shared[k][team][member].e[e];
        }
#pragma unroll
        for (int k = 0; k < Rule::SUMS; k++) {
#pragma unroll
            for (int by = FGD_WARP / 2; by > 0; by /= 2)
#pragma unroll
                for (int e = 0; e < N; e++) lane[k][e] += __shfl_down_sync(0xffffffffu, lane[k][e], by);
#pragma unroll
            for (int width = N / 2; width > 0; width /= 2)
#pragma unroll
                for (int e = 0; e < width; e++) lane[k][e] += lane[k][e + width];
            if (member == 0 && has) block_sums[tile.first * Rule::SUMS + k] = lane[k][0];
        }
    }
}
