// CUDA C++ on the CPU, for tests: threads of a block are fibers, a barrier switches between them.
// Blocks run one after the other. With `reversed` the threads and the blocks take their turns backwards: what depends on
// their order, because a barrier is missing, then gives something else.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <csetjmp>
#include <cstdlib>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __builtin_assume(condition) ((void)(condition))

struct shim_Index {
    int x;
};
static shim_Index threadIdx, blockIdx, blockDim, gridDim;

static inline bool __isGlobal(const void *) { return true; }
static inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
static inline double __dsqrt_rn(double x) { return __builtin_sqrt(x); }

namespace shim {

const int MOST = 256;
const size_t STACK = 64 << 10;

struct Fiber {
    ucontext_t context;
    jmp_buf at;  // where it waits; swapcontext would ask the kernel at every switch
    bool begun, done;
};

static Fiber fibers[MOST];
static char stacks[MOST][STACK];
static jmp_buf scheduler;
static void (*kernel)(const long long *);
static const long long *arguments;

static void leave(Fiber &own) {
    if (!_setjmp(own.at)) _longjmp(scheduler, 1);
}

static void enter(Fiber &other) {
    if (_setjmp(scheduler)) return;
    if (other.begun) _longjmp(other.at, 1);
    other.begun = true;
    setcontext(&other.context);
}

static void thread() {
    kernel(arguments);
    Fiber &own = fibers[threadIdx.x];
    own.done = true;
    leave(own);
}

static void block(int threads, bool reversed) {
    for (int t = 0; t < threads; t++) {
        Fiber &f = fibers[t];
        f.begun = f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks[t];
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, thread, 0);
    }
    for (;;) {  // each turn brings every thread to its next barrier or to its end
        int left = 0;
        for (int k = 0; k < threads; k++) {
            threadIdx.x = reversed ? threads - 1 - k : k;
            Fiber &f = fibers[threadIdx.x];
            if (f.done) continue;
            enter(f);
            left += !f.done;
        }
        if (!left) return;
        if (left != threads) abort();  // some threads wait at a barrier that others have not come to
    }
}

static void launch(void (*function)(const long long *), const long long *given, int grid, int threads, bool barriers,
                   bool reversed) {
    kernel = function;
    arguments = given;
    gridDim.x = grid;
    blockDim.x = threads;
    for (int b = 0; b < grid; b++) {
        blockIdx.x = reversed ? grid - 1 - b : b;
        if (barriers) {
            block(threads, reversed);
            continue;
        }
        for (int k = 0; k < threads; k++) {
            threadIdx.x = reversed ? threads - 1 - k : k;
            function(given);
        }
    }
}

}  // namespace shim

static inline void __syncthreads() { shim::leave(shim::fibers[threadIdx.x]); }

// All threads of a block come to it here, and each warp's change their values among themselves.
template <class T> static inline T __shfl_down_sync(unsigned, T value, int by) {
    static T values[shim::MOST];
    const int own = threadIdx.x;
    values[own] = value;
    __syncthreads();
    const T taken = own % 32 + by < 32 ? values[own + by] : value;
    __syncthreads();
    return taken;
}
