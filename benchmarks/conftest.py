def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="one small size of each work, to see that everything runs")
