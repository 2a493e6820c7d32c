// A GPU on the host: what CUDA text needs to be compiled by g++ and run, one block after the other.
//
// Each thread of a block is a fiber with a stack of its own.  It runs until it meets a barrier (or a shuffle, which is
// two barriers of its warp) and goes on when all that it waits for have come; threads that can never meet end the test.
// Every other block runs its threads from the last to the first, so that a barrier that is missing shows.  With
// BLOCKS_BACKWARD the last block comes first.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

namespace host {

struct Index {
    unsigned x;
};

enum class At { running, warp, block, end };

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack;
    At at = At::running;
    bool entered = false;  // it is kept for the threads of later blocks: a start costs two system calls
    double slot;  // what it offers in a shuffle
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline unsigned current;

inline void wait_at(At where) {
    Fiber& me = fibers[current];
    me.at = where;
    if (!_setjmp(me.place)) _longjmp(scheduler, 1);
}

inline void (*body)();

inline void enter() {
    for (;;) {
        body();
        wait_at(At::end);
    }
}

// Lets those of [first, last) go on who wait at `where`, if all of them do, but for those that have ended.
inline bool release(unsigned first, unsigned last, At where) {
    bool any = false;
    for (unsigned i = first; i < last; ++i) {
        if (fibers[i].at == At::end) continue;
        if (fibers[i].at != where) return false;
        any = true;
    }
    for (unsigned i = first; any && i < last; ++i)
        if (fibers[i].at == where) fibers[i].at = At::running;
    return any;
}

// Whether all threads came to their end.
inline bool run_block(unsigned n, unsigned warp, bool backward) {
    if (fibers.size() < n) fibers.resize(n);
    for (unsigned i = 0; i < n; ++i) {
        fibers[i].at = At::running;
        fibers[i].stack.resize(1 << 16);
    }
    for (bool moved = true; moved;) {
        for (unsigned k = 0; k < n; ++k) {
            current = backward ? n - 1 - k : k;
            Fiber& fiber = fibers[current];
            if (fiber.at != At::running) continue;
            if (_setjmp(scheduler)) continue;
            if (fiber.entered) _longjmp(fiber.place, 1);
            fiber.entered = true;
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = fiber.stack.data();
            fiber.start.uc_stack.ss_size = fiber.stack.size();
            fiber.start.uc_link = nullptr;
            makecontext(&fiber.start, enter, 0);
            setcontext(&fiber.start);
        }
        moved = release(0, n, At::block);
        for (unsigned first = 0; first < n; first += warp) moved |= release(first, first + warp < n ? first + warp : n, At::warp);
    }
    for (unsigned i = 0; i < n; ++i)
        if (fibers[i].at != At::end) {
            fibers.clear();  // they stand in the midst of it
            return false;
        }
    return true;
}

inline Index block_index, block_size, grid_size;

// Runs the blocks of a grid; `arguments` as the driver takes them: the address of each.
template <class... Types, std::size_t... Places>
bool launch(void (*kernel)(Types...), void** arguments, unsigned grid, unsigned block, std::index_sequence<Places...>) {
    static void (*of_all)(Types...);
    static void** given;
    of_all = kernel, given = arguments;
    body = [] { of_all(*static_cast<Types*>(given[Places])...); };
    block_size.x = block, grid_size.x = grid;
    for (unsigned k = 0; k < grid; ++k) {
        block_index.x = BLOCKS_BACKWARD ? grid - 1 - k : k;
        if (!run_block(block, WARP, block_index.x % 2)) return false;
    }
    return true;
}

template <class... Types>
bool launch(void (*kernel)(Types...), void** arguments, unsigned grid, unsigned block) {
    return launch(kernel, arguments, grid, block, std::index_sequence_for<Types...>());
}

// What mma.m8n8k4 does with a warp's elements: sums += a·b, a (8, 4) and b (4, 8).
inline void multiply_add(double (&sums)[2], double a, double b) {
    static std::vector<std::pair<double, double>> given(1024);
    const unsigned first = current / 32 * 32, row = current % 32 / 4, column = current % 4 * 2;
    given[current] = {a, b};
    wait_at(At::warp);
    for (unsigned k = 0; k < 4; ++k)
        for (unsigned i = 0; i < 2; ++i)
            sums[i] += given[first + row * 4 + k].first * given[first + (column + i) * 4 + k].second;
    wait_at(At::warp);
}

}  // namespace host

#define threadIdx (host::Index{host::current})
#define blockIdx host::block_index
#define blockDim host::block_size
#define gridDim host::grid_size

inline void __syncthreads() { host::wait_at(host::At::block); }

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
    const unsigned me = host::current, from = me + distance;
    std::memcpy(&host::fibers[me].slot, &value, sizeof value);
    host::wait_at(host::At::warp);
    if (from / WARP == me / WARP) std::memcpy(&value, &host::fibers[from].slot, sizeof value);
    host::wait_at(host::At::warp);
    return value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    const unsigned from = host::current ^ distance;
    std::memcpy(&host::fibers[host::current].slot, &value, sizeof value);
    host::wait_at(host::At::warp);
    std::memcpy(&value, &host::fibers[from].slot, sizeof value);
    host::wait_at(host::At::warp);
    return value;
}

inline unsigned long long __ballot_sync(unsigned, bool so) {
    host::fibers[host::current].slot = so;
    host::wait_at(host::At::warp);
    unsigned long long bits = 0;
    for (unsigned lane = 0, first = host::current - host::current % WARP; lane < WARP; ++lane)
        if (host::fibers[first + lane].slot != 0.0) bits |= 1ull << lane;
    host::wait_at(host::At::warp);
    return bits;
}

inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

template <class T>
T atomicAdd(T* sum, T value) {
    const T before = *sum;
    *sum += value;
    return before;
}

template <class T>
T atomicMin(T* least, T value) {
    const T before = *least;
    if (value < before) *least = value;
    return before;
}

template <class T>
T atomicMax(T* most, T value) {
    const T before = *most;
    if (value > before) *most = value;
    return before;
}

inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline long long __double_as_longlong(double x) {
    long long bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

#define HOST_KERNEL(name) \
    extern "C" __attribute__((visibility("default"))) bool run_##name(void** arguments, unsigned grid, unsigned block) { \
        return host::launch(dphpc::name, arguments, grid, block);                                                     \
    }
