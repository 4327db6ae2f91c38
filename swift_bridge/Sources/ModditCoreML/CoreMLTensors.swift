import Foundation
import ModditCore

#if canImport(CoreML)
import CoreML
#else
import CoreMLStub
#endif

extension ComputeUnits {
    /// Core ML's name for them.
    var coreML: MLComputeUnits {
        switch self {
        case .all: .all
        case .cpuAndGPU: .cpuAndGPU
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        case .cpuOnly: .cpuOnly
        }
    }
}

extension Feature.DType {
    /// Core ML's name for it.
    var coreML: MLMultiArrayDataType {
        switch self {
        case .float32: .float32
        case .float16: .float16
        case .int32: .int32
        }
    }

    /// Ours for Core ML's.
    init(_ type: MLMultiArrayDataType) throws(ModditError) {
        guard let found = Self.allCases.first(where: { $0.coreML == type }) else {
            throw .unsupported(
                "[coreml] an output has numbers of kind \(type.rawValue), want float32, float16 or int32")
        }
        self = found
    }
}

/// An array of Core ML, which goes from one function into another without a copy.
///
/// Unchecked, because nobody writes into it.
struct CoreMLArray: FeatureValue, @unchecked Sendable {
    let array: MLMultiArray
    let shape: [Int]
    let dtype: Feature.DType

    /// Takes an output of a function.
    init(_ array: MLMultiArray) throws(ModditError) {
        self.array = array
        shape = array.shape.map(\.intValue)
        dtype = try Feature.DType(array.dataType)
    }

    /// Copies the numbers.
    func tensor() throws -> Tensor { try Tensor(array) }
}

extension FeatureValue {
    /// The array of Core ML that it is, or a new one.
    var coreML: MLMultiArray {
        get throws { try (self as? CoreMLArray)?.array ?? tensor().multiArray() }
    }
}

extension Tensor {
    /// Copies an array of Core ML, whose rows may be apart.
    init(_ array: MLMultiArray) throws {
        let dtype = try Feature.DType(array.dataType)
        let (shape, strides) = (array.shape.map(\.intValue), array.strides.map(\.intValue))
        self = try array.withUnsafeBytes { bytes in
            try Tensor(bytes, shape: shape, strides: strides, dtype: dtype)
        }
    }

    /// Copies the numbers into a new array of Core ML.
    func multiArray() throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: numbers.dtype.coreML)
        try array.withUnsafeMutableBytes { bytes, strides in try copy(to: bytes, strides: strides) }
        return array
    }
}
