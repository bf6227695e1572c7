#include "attention_backward.h"
#include "attention_forward.h"
#include "attention_mask_gradient.h"
#include "attention_types.h"

namespace fastdl {

FASTDL_ATTENTION(float)

}  // namespace fastdl
