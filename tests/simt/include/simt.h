// What device.cuh includes on the host in place of CUDA: the same names, with every thread a fibre. See ../harness.py for how a
// test uses it, and simt/runtime.h for what stands behind it.
#pragma once

#include "simt/cuda_names.h"
//
#include "device_types.cuh"
//
#include "simt/cluster.h"
#include "simt/launch.h"
#include "simt/matrix.h"
#include "simt/memory.h"
#include "simt/tile.h"
#include "simt/warp.h"
#include "simt/wgmma.h"
