// The table of the kernels of one instruction set; compiled once per instruction set, like the kernels.
#include "args.h"

#define OPENREC_STRING_(x) #x
#define OPENREC_STRING(x) OPENREC_STRING_(x)

namespace openrec {
namespace OPENREC_ISA {

Pair<ScanArgs> scan_f32();
Pair<ScanArgs> scan_f64();
int64_t scan_blocks(const ScanArgs&, bool);
Pair<DcnArgs> dcn_f32();
Pair<DcnArgs> dcn_f64();
Pair<SampleArgs> sample_f32();
Pair<SampleArgs> sample_f64();

Kernels kernels() {
  return {OPENREC_STRING(OPENREC_ISA), scan_f32(), scan_f64(), scan_blocks, dcn_f32(), dcn_f64(), sample_f32(), sample_f64()};
}

}  // namespace OPENREC_ISA
}  // namespace openrec
