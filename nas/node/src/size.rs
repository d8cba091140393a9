//! Sizes as people write them: `2GiB`, `512M`, `4096`.

/// Bytes of a size like `2GiB`, `2G`, `512MiB`, `1T` or `4096` (all units are powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A size for people: three digits at least, never rounded up to what is not there.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] =
        [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
            // Two digits behind the point, cut off.
            let hundredths = (u128::from(rest) * 100) >> shift;
            return match whole {
                100.. => format!("{whole} {unit}"),
                10..100 => format!("{whole}.{} {unit}", hundredths / 10),
                _ => format!("{whole}.{hundredths:02} {unit}"),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("2GiB", 2 << 30),
            ("2g", 2 << 30),
            ("512 MiB", 512 << 20),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "2X", "-1", "1.5G", "99999999999999999999", "99999999P"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (12 << 30, "12.0 GiB"),
            (3 << 29, "1.50 GiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
