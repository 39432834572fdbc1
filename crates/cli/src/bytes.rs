//! Byte counts as people write and read them.

const DECIMAL: [(&str, u64); 4] =
    [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000)];
const BINARY: [(&str, u64); 4] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads `512MiB`, `1.5 GB`, `16K` (binary, as is usual for a bare letter) or a plain number.
///
/// # Errors
/// Says what is understood.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let refuse = || format!("expected a size such as 512MiB, 1.5GB or 1048576, found `{text}`");
    let scale = scale(unit).ok_or_else(refuse)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(refuse);
    }
    let value = number.parse::<f64>().map_err(|_| refuse())? * scale as f64;
    if value < 9.0e18 { Ok(value as u64) } else { Err(refuse()) }
}

fn scale(unit: &str) -> Option<u64> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(1);
    }
    let letter = |name: &str| unit.eq_ignore_ascii_case(&name[..1]);
    let decimal = DECIMAL
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name));
    let binary = BINARY
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name) || letter(name));
    decimal.or(binary).map(|&(_, scale)| scale)
}

/// A size on disk, in powers of ten: `4.25 GB`.
pub fn disk(bytes: u64) -> String {
    shown(bytes, &DECIMAL)
}

/// A size in memory, in powers of two: `512 MiB`.
pub fn memory(bytes: u64) -> String {
    shown(bytes, &BINARY)
}

fn shown(bytes: u64, units: &[(&str, u64)]) -> String {
    let Some((name, scale)) = units.iter().rev().find(|(_, scale)| bytes >= *scale) else {
        return format!("{bytes} B");
    };
    let value = bytes as f64 / *scale as f64;
    let digits = if bytes.is_multiple_of(*scale) || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {name}")
}

/// A count of parameters: `1.92 M`, `396.8 B`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("16K", 16 << 10),
            ("16KiB", 16 << 10),
            ("16kB", 16_000),
            ("2g", 2 << 30),
            ("4096", 4096),
            ("4096B", 4096),
            ("0.5KiB", 512),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_sizes_are_refused_by_name() {
        for text in ["", "MiB", "-1", "1.2.3GB", "12 parsecs", "99999999999TB", "1e3"] {
            let error = parse(text).unwrap_err();
            assert_eq!(
                error,
                format!("expected a size such as 512MiB, 1.5GB or 1048576, found `{text}`")
            );
        }
    }

    #[test]
    fn sizes_are_shown_in_three_figures() {
        assert_eq!(disk(999), "999 B");
        assert_eq!(disk(4_246_732_800), "4.25 GB");
        assert_eq!(disk(217_400_000_000), "217 GB");
        assert_eq!(memory(512 << 20), "512 MiB");
        assert_eq!(memory((12 << 20) + (300 << 10)), "12.3 MiB");
        assert_eq!(count(1_920_000), "1.92 M");
    }
}
