/// What goes into the packages and comes out of them: numbers here, or where the runtime has them.
package protocol FeatureValue: Sendable {
    /// Sizes.
    var shape: [Int] { get }
    /// Kind of the numbers.
    var dtype: Feature.DType { get }

    /// The numbers, copied if they are the runtime's.
    func tensor() throws -> Tensor
}

/// Numbers with a shape, in row-major order.
package struct Tensor: FeatureValue, Hashable {
    /// The numbers.
    package enum Numbers: Sendable, Hashable {
        /// Single precision.
        case float32([Float])
        /// Half precision, as bits; only handed from one package to the next.
        case float16([UInt16])
        /// Whole numbers.
        case int32([Int32])

        /// How many there are.
        var count: Int {
            switch self {
            case .float32(let numbers): numbers.count
            case .float16(let numbers): numbers.count
            case .int32(let numbers): numbers.count
            }
        }

        /// Numbers and others of the same kind behind them.
        fileprivate func appending(_ others: Numbers) -> Numbers {
            switch (self, others) {
            case (.float32(let a), .float32(let b)): .float32(a + b)
            case (.float16(let a), .float16(let b)): .float16(a + b)
            case (.int32(let a), .int32(let b)): .int32(a + b)
            default: self
            }
        }

        /// Their kind.
        package var dtype: Feature.DType {
            switch self {
            case .float32: .float32
            case .float16: .float16
            case .int32: .int32
            }
        }
    }

    /// Sizes.
    package let shape: [Int]
    /// The numbers, as many as the product of `shape`.
    package let numbers: Numbers

    /// Makes a tensor.
    ///
    /// - Throws: `ModditError.shape` if the number of values is not the shape's.
    package init(_ numbers: Numbers, shape: [Int]) throws(ModditError) {
        guard let count = Self.count(shape), count == numbers.count else {
            throw .shape("[tensor] got \(numbers.count) values for shape \(shape)")
        }
        self.shape = shape
        self.numbers = numbers
    }

    /// Kind of the numbers.
    package var dtype: Feature.DType { numbers.dtype }

    /// Itself.
    package func tensor() -> Tensor { self }

    /// Makes a tensor of single precision.
    init(_ values: [Float], shape: [Int]) throws(ModditError) {
        try self.init(.float32(values), shape: shape)
    }

    /// Puts tensors behind each other along the first axis.
    ///
    /// - Throws: `ModditError.shape` if there are none, or if their other sizes or kinds differ.
    init(joining parts: [Tensor]) throws(ModditError) {
        guard let first = parts.first, !first.shape.isEmpty,
            parts.allSatisfy({
                $0.shape.dropFirst() == first.shape.dropFirst() && $0.dtype == first.dtype
            })
        else { throw .shape("[tensor] cannot put shapes \(parts.map(\.shape)) behind each other") }
        let size = parts.reduce(0) { $0 + $1.shape[0] }
        let numbers = parts.dropFirst().reduce(first.numbers) { $0.appending($1.numbers) }
        try self.init(numbers, shape: [size] + first.shape.dropFirst())
    }

    /// Copies numbers out of memory where the rows may be apart.
    ///
    /// - Parameters:
    ///   - bytes: the memory.
    ///   - shape: sizes.
    ///   - strides: how many numbers apart two neighbours of each axis are.
    ///   - dtype: kind of the numbers.
    /// - Throws: `ModditError.shape` if the memory does not hold all numbers.
    package init(
        _ bytes: UnsafeRawBufferPointer, shape: [Int], strides: [Int], dtype: Feature.DType
    ) throws(ModditError) {
        let numbers: Numbers =
            switch dtype {
            case .float32: .float32(try Self.gather(bytes, shape, strides))
            case .float16: .float16(try Self.gather(bytes, shape, strides))
            case .int32: .int32(try Self.gather(bytes, shape, strides))
            }
        try self.init(numbers, shape: shape)
    }

    /// Copies the numbers into memory where the rows may be apart.
    ///
    /// - Throws: `ModditError.shape` if the memory has no room for them.
    package func copy(to bytes: UnsafeMutableRawBufferPointer, strides: [Int]) throws(ModditError) {
        switch numbers {
        case .float32(let values): try Self.scatter(values, to: bytes, shape, strides)
        case .float16(let values): try Self.scatter(values, to: bytes, shape, strides)
        case .int32(let values): try Self.scatter(values, to: bytes, shape, strides)
        }
    }

    /// The numbers of a tensor of single precision.
    ///
    /// - Throws: `ModditError.unsupported` for other tensors.
    func floats() throws(ModditError) -> [Float] {
        guard case .float32(let values) = numbers else {
            throw .unsupported("[tensor] got \(dtype.rawValue) numbers, want float32")
        }
        return values
    }

    private static func count(_ shape: [Int]) -> Int? {
        var product = 1
        for size in shape {
            let (next, isTooLarge) = product.multipliedReportingOverflow(by: size)
            guard size >= 0, !isTooLarge else { return nil }
            product = next
        }
        return product
    }

    private static func gather<Number: BitwiseCopyable & Numeric>(
        _ bytes: UnsafeRawBufferPointer, _ shape: [Int], _ strides: [Int]
    ) throws(ModditError) -> [Number] {
        let places = try Places(shape, strides, most: bytes.count / MemoryLayout<Number>.stride)
        var values: [Number] = []
        values.reserveCapacity(places.rows.count * places.length)
        for row in places.rows {
            for index in 0..<places.length {
                let offset = (row + index * places.step) * MemoryLayout<Number>.stride
                values.append(bytes.loadUnaligned(fromByteOffset: offset, as: Number.self))
            }
        }
        return values
    }

    private static func scatter<Number: BitwiseCopyable & Numeric>(
        _ values: [Number], to bytes: UnsafeMutableRawBufferPointer, _ shape: [Int], _ strides: [Int]
    ) throws(ModditError) {
        let places = try Places(shape, strides, most: bytes.count / MemoryLayout<Number>.stride)
        var position = 0
        for row in places.rows {
            for index in 0..<places.length {
                let offset = (row + index * places.step) * MemoryLayout<Number>.stride
                bytes.storeBytes(of: values[position], toByteOffset: offset, as: Number.self)
                position += 1
            }
        }
    }

    /// Where numbers lie: the start of each row of the last axis.
    private struct Places {
        let rows: [Int]
        let length: Int
        let step: Int

        init(_ shape: [Int], _ strides: [Int], most: Int) throws(ModditError) {
            guard shape.count == strides.count, let count = Tensor.count(shape), count <= most,
                strides.allSatisfy({ $0 >= 0 && $0 <= most })
            else { throw .shape("[tensor] shape \(shape) with strides \(strides) is not inside \(most) numbers") }
            // only where there are numbers: beside a size of 0 others may be too large to multiply
            let last = count == 0 ? 0 : zip(shape, strides).reduce(0) { $0 + ($1.0 - 1) * $1.1 }
            guard count == 0 || last < most else {
                throw .shape("[tensor] shape \(shape) with strides \(strides) is not inside \(most) numbers")
            }
            length = shape.last ?? 1
            step = strides.last ?? 1
            var rows = count == 0 ? [] : [0]
            for (size, stride) in zip(shape, strides).dropLast() where count > 0 {
                rows = rows.flatMap { row in (0..<size).map { row + $0 * stride } }
            }
            self.rows = rows
        }
    }
}
