from moe_probe.cli import main

main()
