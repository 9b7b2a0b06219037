"""The program that made nano, the bundled tiny Flux; see simpletuner/nano/README.md."""
