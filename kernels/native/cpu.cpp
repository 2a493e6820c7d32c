// Module that tells which builds this CPU can run.  It is compiled for the baseline, as it is loaded first on any CPU.

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "builds.h"

NB_MODULE(_cpu, m) {
    m.def("builds", &dphpc::builds, "Names of the builds that this CPU can run, the fastest at last.");
}
