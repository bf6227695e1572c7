#include "spans_of.h"

namespace fastdl {

FASTDL_SPANS(double)

}  // namespace fastdl
