//! Which x86-64 core this is, by `cpuid`.

use super::core::CoreKind;

/// Zen 5 is family 0x1a of AMD's; those before it that are in use are Zens, too.
pub fn core() -> CoreKind {
    match maker_and_family() {
        (maker, 0x1a..) if maker == *b"AuthenticAMD" => CoreKind::Zen5,
        (maker, _) if maker == *b"AuthenticAMD" => CoreKind::Zen,
        _ => CoreKind::Other,
    }
}

/// The CPU's maker, e.g. `AuthenticAMD`, and its family: base and extended (AMD's Zen 4 is 0x19, Zen 5 0x1a).
fn maker_and_family() -> ([u8; 12], u32) {
    let id = std::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (part, word) in name.as_chunks_mut::<4>().0.iter_mut().zip([id.ebx, id.edx, id.ecx]) {
        *part = word.to_le_bytes();
    }
    let version = std::arch::x86_64::__cpuid(1).eax;
    (name, (version >> 8 & 0xf) + (version >> 20 & 0xff))
}
