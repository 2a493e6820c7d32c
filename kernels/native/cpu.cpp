// Which of the builds this CPU can run.  Compiled for the baseline: it is loaded before anything is known.

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "builds.h"

NB_MODULE(_cpu, m) {
    m.def("builds", &dphpc::builds, "Names of the builds that this CPU can run, the fastest at last.");
}
