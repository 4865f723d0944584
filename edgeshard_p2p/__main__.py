from edgeshard_p2p.cli import main

main(prog_name="edgeshard")
