"""Convert a run to Core ML for Apple's devices, as a classifier of images with its class names.

The converter was made for other versions of PyTorch, so give it an environment of its own:

  python -m venv coreml
  coreml/bin/pip install "carnet[train]" coremltools
  coreml/bin/python examples/convert/to_coreml.py runs/photos-carnet_s photos.mlpackage

Input: an image of S by S pixels. Output: the class, and calibrated probabilities by class. Only macOS computes with it:
there, the result is compared with the exported model.
"""

import sys

import coremltools
import numpy as np
import torch
from network import Job
from PIL import Image

if __name__ == "__main__":
    job = Job(__doc__)
    program = torch.export.export(job.network, (job.example,)).run_decompositions({})
    model = coremltools.convert(
        program,
        inputs=[coremltools.ImageType("image", shape=tuple(job.example.shape))],
        classifier_config=coremltools.ClassifierConfig(list(job.exported.classes)),
        compute_units=coremltools.ComputeUnit.CPU_ONLY,
        minimum_deployment_target=coremltools.target.iOS16,
    )
    model.save(str(job.output))

    def answer(image):
        found = model.predict({"image": Image.fromarray(image[0])})["classLabel_probs"]
        return np.array([[found[name] for name in job.exported.classes]])

    if sys.platform == "darwin":
        job.compare(answer)
