// Threads: OpenMP where there is one, one thread otherwise; the caller always says how many.
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

}  // namespace dphpc
