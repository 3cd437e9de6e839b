// Kernels that are the same for every rule: sums of sums, and how numbers of the host reach the device. It stands behind
// transport.cuh; FGD_FOLDED is how many numbers one block adds, FGD_CARRIED how many bytes a launch takes along.

// Adds the numbers lo..hi of each column of `in` by the pairwise tree, one block to a row of `parts`: its lo and hi.
// Parts of FGD_FOLDED numbers are whole branches of the tree of all, so that a sum may be added in several goes.
extern "C" __global__ void __launch_bounds__(FGD_THREADS)
    fgd_add(const double *in, const i64 *parts, i64 count, i64 columns, double *out) {
    __shared__ double shared[FGD_FOLDED];
    const int thread = threadIdx.x;
    for (i64 part = blockIdx.x; part < count; part += gridDim.x) {
        const i64 lo = parts[2 * part];
        const int all = (int)(parts[2 * part + 1] - lo);
        for (i64 k = 0; k < columns; k++) {  // the last one's sum is in shared[0], which its reader alone overwrites
            for (int j = thread; j < all; j += FGD_THREADS) shared[j] = in[(lo + j) * columns + k];
            for (int n = all; n > 1; n -= n / 2) {
                const int pairs = n / 2, left = n - pairs;
                for (int from = 0; from < left; from += FGD_THREADS) {
                    const int j = from + thread;
                    double sum = 0;
                    __syncthreads();
                    if (j < pairs) sum = shared[2 * j] + shared[2 * j + 1];
                    else if (j < left) sum = shared[n - 1];
                    __syncthreads();  // all have read what is overwritten now
                    if (j < left) shared[j] = sum;
                }
            }
            if (thread == 0) out[part * columns + k] = all ? shared[0] : 0;
        }
    }
}

struct fgd_Carried {
    i64 word[FGD_CARRIED / 8];
};

// Stores what the launch itself takes along: no memory of the host is read later, and nobody waits.
extern "C" __global__ void __launch_bounds__(FGD_THREADS) fgd_put(fgd_Carried carried, i64 *to, i64 words) {
    for (int j = threadIdx.x; j < words; j += FGD_THREADS) to[j] = carried.word[j];
}
