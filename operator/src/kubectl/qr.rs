//! QR codes in a terminal. Pure.

use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};

use super::PluginError;

/// White on black whatever the terminal's colours are, and back to normal.
const WHITE_ON_BLACK: &str = "\x1b[38;5;231;48;5;16m";
const NORMAL: &str = "\x1b[0m";

/// `text` as a QR code of half blocks; `coloured` for a terminal, which may be light or dark.
pub(super) fn qr_code(text: &str, coloured: bool) -> Result<String, PluginError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|error| {
        PluginError::Unsuitable(format!(
            "the configuration does not fit into a QR code: {error}; copy the file"
        ))
    })?;
    // Blocks are what is light: they carry the terminal's foreground colour.
    let image = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .quiet_zone(true)
        .build();
    let (before, after) = if coloured { (WHITE_ON_BLACK, NORMAL) } else { ("", "") };
    let lines: Vec<String> = image.lines().map(|line| format!("{before}{line}{after}\n")).collect();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_has_a_light_rim_and_dark_modules() {
        let text = qr_code("[Interface]\nPrivateKey = x\n", false).unwrap();
        let first = text.lines().next().unwrap();
        assert!(first.chars().all(|c| c == '█'), "{first}");
        assert!(text.contains(' '));
        let width = first.chars().count();
        assert!(text.lines().all(|l| l.chars().count() == width));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line() {
        let error = qr_code(&"x".repeat(5000), false).unwrap_err();
        assert!(!error.to_string().contains('\n'));
    }
}
