# Two stages: mrpt, the viewer and the wheel are built in the first; the second holds no compiler and no Node.js, and
# runs as nobody special.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# x86-64-v2 runs on every server since 2009; -march=native would die by SIGILL on another machine.
ENV CFLAGS="-march=x86-64-v2" CXXFLAGS="-march=x86-64-v2"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE hatch_build.py ./
COPY config config
COPY dicomnode dicomnode
COPY viewer/ viewer/
# pip brings Node.js for the viewer as a build requirement (hatch_build.py) and leaves it with the build.
RUN python -m venv /opt/dicomnode && /opt/dicomnode/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim-bookworm
# libfribidi0: right-to-left findings on the contact sheet; libgl1, libglib2.0-0: OpenCV, for text in pixels
RUN apt-get update && apt-get install -y --no-install-recommends libfribidi0 libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10112 --home-dir /var/lib/dicomnode --create-home dicomnode
COPY --from=build /opt/dicomnode /opt/dicomnode
USER dicomnode
WORKDIR /var/lib/dicomnode
ENV PATH=/opt/dicomnode/bin:$PATH DICOMNODE__NODE__DATA_DIR=/var/lib/dicomnode/var DICOMNODE__DICOM__HOST=0.0.0.0
EXPOSE 11112 8080
VOLUME /var/lib/dicomnode/var
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz')"]
ENTRYPOINT ["dicomnode"]
CMD ["serve"]
