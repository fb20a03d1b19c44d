"""Operations, implemented for each platform: `interface` defines them, `choice` selects one."""
