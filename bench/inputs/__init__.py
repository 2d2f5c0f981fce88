"""What is measured with: stores, copies, files of every transfer syntax."""
