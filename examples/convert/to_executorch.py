"""Convert a run to ExecuTorch, PyTorch's runtime for phones and small boards, for processors (XNNPACK).

The converter pins other versions, so give it an environment of its own:

  python -m venv executorch
  executorch/bin/pip install "carnet[train]" executorch
  executorch/bin/python examples/convert/to_executorch.py runs/photos-carnet_s photos.pte

Input: float32 (1, 3, S, S), pixels from 0 to 255, red first. Output: calibrated probabilities (1, classes).
"""

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime
from network import Job

if __name__ == "__main__":
    job = Job(__doc__)
    program = torch.export.export(job.network, (job.example,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    job.output.write_bytes(lowered.to_executorch().buffer)

    # One thread, as the exported model beside it.
    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(str(job.output)).load_method("forward")

    def answer(image):
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float().contiguous()
        return method.execute([pixels])[0].numpy()

    job.compare(answer)
