"""Convert a run to LiteRT, formerly TensorFlow Lite: phones, microcomputers, Coral.

The converter pins a version of PyTorch, so give it an environment of its own:

  python -m venv litert
  litert/bin/pip install litert-torch
  litert/bin/pip install "carnet[train]"     # warns that xdsl wants an older typing-extensions; it works all the same
  litert/bin/python examples/convert/to_litert.py runs/photos-carnet_s photos.tflite

Input: float32 (1, S, S, 3), pixels from 0 to 255, red first. Output: calibrated probabilities (1, classes).
"""

import litert_torch
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from network import Job

if __name__ == "__main__":
    job = Job(__doc__)
    network = litert_torch.to_channel_last_io(job.network, args=[0])
    litert_torch.convert(network, (job.example.permute(0, 2, 3, 1),)).export(str(job.output))

    interpreter = Interpreter(str(job.output), num_threads=1)
    interpreter.allocate_tensors()
    (pixels,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answer(image):
        interpreter.set_tensor(pixels["index"], image.astype(np.float32))
        interpreter.invoke()
        return interpreter.get_tensor(probabilities["index"])

    job.compare(answer)
