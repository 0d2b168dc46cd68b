// Build scripts look for this file to find out whether CUDA is installed: see bin/nvcc.
