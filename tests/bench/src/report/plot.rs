//! Plots as SVG.

use anyhow::anyhow;
use plotters::{
    coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue},
    prelude::*,
};

use crate::stats::Spread;

const SIZE: (u32, u32) = (900, 420);
const FONT: &str = "sans-serif";

/// Something to see.
#[derive(Debug)]
pub(crate) enum Plot {
    /// A bar for each, with a line from quartile to quartile.
    Bars {
        /// The name of its file.
        name: &'static str,
        title: String,
        unit: &'static str,
        bars: Vec<(String, Spread)>,
    },
    /// How something grows, on logarithmic scales.
    Growth {
        name: &'static str,
        title: String,
        across: &'static str,
        up: &'static str,
        lines: Vec<(String, Vec<(f64, Spread)>)>,
    },
}

impl Plot {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Bars { name, .. } | Self::Growth { name, .. } => name,
        }
    }

    pub(crate) fn title(&self) -> &str {
        match self {
            Self::Bars { title, .. } | Self::Growth { title, .. } => title,
        }
    }

    /// The file's text. Names are escaped by the library.
    pub(crate) fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            area.fill(&WHITE).map_err(told)?;
            match self {
                Self::Bars {
                    title, unit, bars, ..
                } => draw_bars(&area, title, unit, bars)?,
                Self::Growth {
                    title,
                    across,
                    up,
                    lines,
                    ..
                } => {
                    draw_growth(&area, title, [across, up], lines)?;
                }
            }
            area.present().map_err(told)?;
        }
        Ok(text)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn told(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw a plot: {error}")
}

fn draw_bars(
    area: &Area<'_>,
    title: &str,
    unit: &str,
    bars: &[(String, Spread)],
) -> anyhow::Result<()> {
    let highest = bars
        .iter()
        .map(|(_, spread)| spread.high)
        .fold(1.0, f64::max);
    let count = bars.len();
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(190)
        .build_cartesian_2d(
            0.0..highest * 1.1,
            (0..count.saturating_sub(1)).into_segmented(),
        )
        .map_err(told)?;
    let name = |value: &SegmentValue<usize>| match value {
        // The first on top.
        SegmentValue::CenterOf(place) if *place < count => bars[count - 1 - place].0.clone(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(count)
        .y_label_formatter(&name)
        .x_desc(unit)
        .label_style((FONT, 14))
        .draw()
        .map_err(told)?;
    for (place, (_, spread)) in bars.iter().rev().enumerate() {
        let (low, high) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let mut bar = Rectangle::new(
            [(0.0, low), (spread.median.max(0.0), high)],
            RGBColor(70, 130, 180).filled(),
        );
        bar.set_margin(4, 4, 0, 0);
        let middle = SegmentValue::CenterOf(place);
        let whisker = PathElement::new(
            [
                (spread.low.max(0.0), middle.clone()),
                (spread.high.max(0.0), middle.clone()),
            ],
            BLACK.stroke_width(2),
        );
        let label = Text::new(
            format!("  {:.0}", spread.median),
            (spread.high.max(0.0), middle),
            (FONT, 14),
        );
        chart.draw_series([bar]).map_err(told)?;
        chart.draw_series([whisker]).map_err(told)?;
        chart.draw_series([label]).map_err(told)?;
    }
    Ok(())
}

fn draw_growth(
    area: &Area<'_>,
    title: &str,
    [across, up]: [&str; 2],
    lines: &[(String, Vec<(f64, Spread)>)],
) -> anyhow::Result<()> {
    let points = || lines.iter().flat_map(|(_, line)| line);
    let most = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let bounds = points().fold((f64::MAX, 0.0_f64), |(low, high), (_, spread)| {
        (low.min(spread.low), high.max(spread.high))
    });
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (0.8..most * 1.3).log_scale(),
            (bounds.0.max(1e-6) * 0.7..bounds.1.max(1e-5) * 1.5).log_scale(),
        )
        .map_err(told)?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up)
        .label_style((FONT, 14))
        .draw()
        .map_err(told)?;
    for (number, (name, line)) in lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let medians = line.iter().map(|(at, spread)| (*at, spread.median));
        chart
            .draw_series(LineSeries::new(medians.clone(), color.stroke_width(2)))
            .map_err(told)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart
            .draw_series(medians.map(|at| Circle::new(at, 3, color.filled())))
            .map_err(told)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font((FONT, 14))
        .draw()
        .map_err(told)
}
