from pathlib import Path
ATLAS_PATH = Path(__file__).parent / "data" / "atlas.json"
SCHEMA = "deadreckon.atlas/1"
