"""AutoNAT's searched strategy for AdaNAT-L's transformer, as a preset.

The numbers are those of ``configs/AutoNAT_L-T8_strategy.yaml`` of LeapLabTHU/ImprovedNAT, which
leaves out the last step's mask ratio and masking temperature: both are 0.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "autonat-8": {
        "steps": 8,
        "schedule": "0.9531645174140464,0.8795409806037042,0.7940230737075623,0.745995860948045,"
        "0.6249785820461957,0.407321956652571,0.260658917067054,0.0",
        "masking_temperature": "2.404912789740805,2.477616274962803,1.191696577294597,"
        "0.7685444738649722,1.0673489052089495,0.9353720330515827,0.7843839537838292,0.0",
        "sampling_temperature": "2.8999037830310685,1.867261830931786,1.1443729673819831,"
        "1.3796334226014182,1.4699896959810144,1.3760684112198358,1.7082165405200722,"
        "0.7133060703601533",
        "guidance": "0.0001,0.0001,0.0001,0.9151274967591447,1.6160182878189675,"
        "1.1945509026838659,1.38322370140345,1.22678520936251",
    }
}
"""By name; for ImageNet at 256 pixels in 8 steps."""
