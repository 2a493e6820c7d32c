// The function that `plugin load` calls.  It is compiled for the baseline, as it checks whether this machine can run
// the rest.

#include <dlfcn.h>
#include <mpi.h>

#include <cstring>
#include <string>

#include "builds.h"
#include "error.h"
#include "force.h"
#include "lammps.h"
#include "lmptype.h"

namespace {

using namespace LAMMPS_NS;

// The struct of LAMMPS' plugin interface, as in LAMMPS' documentation.
struct Plugin {
    const char *version, *style, *name, *info, *author;
    void* creator;
    void* handle;
};

// A function of LAMMPS' library interface, or null if this LAMMPS does not have it.
template <class Function>
Function* library_function(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// The MPI of the headers.  MPI handles are pointers in Open MPI, integers in MPICH and its derivatives, and other
// integers in LAMMPS' serial replacement, so that the families cannot be mixed.
#if defined(OMPI_MAJOR_VERSION)
constexpr const char* mpi_family = "Open MPI";
#elif defined(MPICH_VERSION) || defined(MPICH_NUMVERSION) || defined(I_MPI_VERSION)
constexpr const char* mpi_family = "MPICH";
#else
constexpr const char* mpi_family = "no MPI";
#endif

std::string family_of_running_mpi() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    if (std::strstr(text, "Open MPI")) return "Open MPI";
    if (std::strstr(text, "STUBS")) return "no MPI";
    return "MPICH";
}

// The reason why this plugin cannot be loaded into a LAMMPS; empty if it can.
std::string obstacle(LAMMPS* lmp) {
    bool can_run = false;
    for (const char* build : dphpc::builds()) can_run = can_run || !std::strcmp(build, DPHPC_ISA);
    if (!can_run)
        return "it is compiled for instruction set " DPHPC_ISA
               ", which this machine lacks; build it here, or with --isa v2";
    const auto version = library_function<int(void*)>("lammps_version");
    const int running = version ? version(lmp) : lmp->num_ver;
    if (DPHPC_LAMMPS_VERSION && running != DPHPC_LAMMPS_VERSION)
        return "it is compiled for LAMMPS " + std::to_string(DPHPC_LAMMPS_VERSION) + ", this is LAMMPS " +
               std::to_string(running);
    const auto setting = library_function<int(void*, const char*)>("lammps_extract_setting");
    if (setting && (setting(lmp, "bigint") != sizeof(bigint) || setting(lmp, "tagint") != sizeof(tagint) ||
                    setting(lmp, "imageint") != sizeof(imageint)))
        return "it is compiled for integers of other sizes than this LAMMPS has (LAMMPS_BIGBIG or not)";
    const std::string family = family_of_running_mpi();
    if (family != mpi_family)
        return std::string("it is compiled with the mpi.h of ") + mpi_family + ", this LAMMPS runs with " + family;
    return "";
}

}  // namespace

void* make_pair_dphpc(LAMMPS* lmp);  // in pair_dphpc.cpp

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle, void* regfunc) {
    auto* lammps = static_cast<LAMMPS*>(lmp);
    const std::string problem = obstacle(lammps);
    if (!problem.empty())
        lammps->error->all(FLERR, "the plugin of dphpc cannot be used: {}; build it with `dphpc lammps build`", problem);
    Plugin plugin{lammps->version,
                  "pair",
                  "dphpc",
                  "Deep Potential by dphpc: pair_style dphpc",
                  "dphpc",
                  reinterpret_cast<void*>(&make_pair_dphpc),
                  handle};
    reinterpret_cast<void (*)(Plugin*, void*)>(regfunc)(&plugin, lmp);
    // LAMMPS keeps one list of plugins for all instances in a process, and registers a style with the first one only.
    lammps->force->pair_map->emplace(plugin.name, reinterpret_cast<Force::PairCreator>(plugin.creator));
}
