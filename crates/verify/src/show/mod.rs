//! Reports as text, pages and curves.

mod breakdown;
mod html;
mod plot;
mod text;
