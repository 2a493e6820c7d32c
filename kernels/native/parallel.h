// Threads by OpenMP, or a single one without it; the caller always gives their number.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace dphpc {

#ifdef _OPENMP
constexpr bool has_openmp = true;
inline int thread_id() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }
#else
constexpr bool has_openmp = false;
inline int thread_id() { return 0; }
inline int team_size() { return 1; }
#endif

// Ends the idle threads of OpenMP; the next parallel loop starts new ones.  Returns false if OpenMP cannot do that.
// It is needed before a fork: the child has none of its parent's threads, and GNU OpenMP would wait for them forever;
// LLVM's OpenMP handles a fork itself.
inline bool release_threads() {
#if !defined(_OPENMP) || defined(__clang__)
    return true;
#elif __GNUC__ >= 9
    return omp_pause_resource_all(omp_pause_soft) == 0;
#else
    return false;
#endif
}

}  // namespace dphpc
