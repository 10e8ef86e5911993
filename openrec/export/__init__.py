"""Trained models as files that other programs run: ONNX, PyTorch packages, safetensors.

``openrec.export.run.export`` makes and checks them; ``openrec.load`` reads each of them.
"""
