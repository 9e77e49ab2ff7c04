# fedsim on the processor, as an image: docker build -t fedsim . && docker run --rm -v "$PWD/runs:/home/fedsim/runs" fedsim
FROM python:3.11-slim

WORKDIR /opt/fedsim
COPY constraints.txt pyproject.toml README.md LICENSE fedsim_lab.py ./
COPY fedsim fedsim/
COPY strategies strategies/
COPY clients clients/
COPY experiments experiments/

# PyTorch's builds for the CPU are some hundred MB, those of the package index with CUDA some GB.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt .

# A folder that is mounted over runs/ must be one that user 1000 may write to, or name another with --user.
RUN useradd --create-home --uid 1000 fedsim && install --directory --owner fedsim /home/fedsim/runs
USER fedsim
WORKDIR /home/fedsim

ENTRYPOINT ["fedsim"]
CMD ["run", "digits_fedavg"]
