"""Forms of a finished bundle for machines that do not take a plain ONNX graph."""
