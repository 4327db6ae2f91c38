extension PixelImage {
    /// Turns a picture upright.
    ///
    /// - Parameter orientation: as EXIF numbers them, 1 to 8; 1 and what is unknown stays.
    package func upright(from orientation: Int) throws(ModditError) -> PixelImage {
        let (isSideways, height, width) = ((5...8).contains(orientation), self.height, self.width)
        let (flipsX, flipsY) = ([2, 3, 7, 8].contains(orientation), [3, 4, 6, 7].contains(orientation))
        guard isSideways || flipsX || flipsY else { return self }
        let (rows, columns) = isSideways ? (width, height) : (height, width)
        var pixels: [UInt8] = []
        pixels.reserveCapacity(rgba.count)
        for row in 0..<rows {
            for column in 0..<columns {
                let (x, y) = isSideways ? (row, column) : (column, row)
                let place = (flipsY ? height - 1 - y : y) * width + (flipsX ? width - 1 - x : x)
                pixels += rgba[4 * place..<4 * place + 4]
            }
        }
        return try PixelImage(width: columns, height: rows, rgba: pixels)
    }
}
