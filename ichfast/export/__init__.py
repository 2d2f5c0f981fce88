"""A trained run as a file that needs only torch or ONNX Runtime."""
