import torch._inductor.config


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="one small size of each work, to see that everything runs")


def pytest_configure(config):
    if config.getoption("quick"):
        # To ask which instruction sets a compiler has, by compiling for each, takes as long as what is to run.
        torch._inductor.config.cpp.vec_isa_ok = True
